"""What a hostile peer can take from the agent port; gRPC ignores a misspelt option in silence."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs
from tests.headend.gateway.rig import PATIENCE, Agent, Operator, Rig
from tests.pki import Leaf

from derops.wire.v1 import agent_pb2, agent_pb2_grpc, dispatch_pb2
from derops_headend.gateway.listener import EXCHANGE_SECONDS
from derops_headend.gateway.stream_reports import MAX_REFUSED_REPORTS

LONGEST_TIMEOUT_SECONDS = 30
SLACK_SECONDS = 15


class RawConnection:
    """One TCP connection with as much of TLS and HTTP/2 as a test wants to speak."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.http = h2.connection.H2Connection(config)

    async def begin(self) -> None:
        """Send the HTTP/2 preface."""
        self.http.initiate_connection()
        await self.flush()

    async def call(self, stream_id: int = 1) -> None:
        """Open a stream to Connect."""
        headers = [
            (":method", "POST"),
            (":scheme", "https"),
            (":path", "/derops.wire.v1.AgentLink/Connect"),
            (":authority", "derops-gateway"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        self.http.send_headers(stream_id, headers)
        await self.flush()

    async def flush(self) -> None:
        self.writer.write(self.http.data_to_send())
        await self.writer.drain()

    async def _read(self) -> bytes:
        try:
            return await self.reader.read(65536)
        except ConnectionError:
            return b""

    async def events(self) -> AsyncIterator[h2.events.Event]:
        """Yield what the server says, and answer SETTINGS, until it closes."""
        while data := await self._read():
            for event in self.http.receive_data(data):
                yield event
            with suppress(ConnectionError):  # closed meanwhile: the next read says so
                await self.flush()

    async def trailers(self) -> dict[str, str]:
        """Return the headers in which gRPC says how a call ended."""
        async with asyncio.timeout(PATIENCE):
            async for event in self.events():
                if isinstance(event, h2.events.TrailersReceived | h2.events.ResponseReceived):
                    headers = {str(name): str(value) for name, value in event.headers or ()}
                    if "grpc-status" in headers:
                        return headers
        raise AssertionError("closed without a status")

    async def closed_by_server(self) -> None:
        """Return when the server closes; what it says before is not answered."""
        try:
            while await self.reader.read(65536):
                pass
        except (ConnectionError, ssl.SSLError):
            return


@asynccontextmanager
async def raw(
    rig: Rig, directory: Path, leaf: Leaf | None, **tls: ssl.TLSVersion
) -> AsyncIterator[RawConnection]:
    """Yield a connection with TLS where a leaf is given, else plain."""
    assert rig.gateway is not None
    context = None
    if leaf is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=rig.server_ca.pem.decode())
        chain = directory / "client.pem"
        chain.write_bytes(leaf.pem + leaf.key)
        context.load_cert_chain(chain)
        context.set_alpn_protocols(["h2"])
        for name, value in tls.items():
            setattr(context, name, value)
    reader, writer = await asyncio.open_connection(
        "127.0.0.1",
        rig.gateway.agent_port,
        ssl=context,
        server_hostname="derops-gateway" if context else None,
    )
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.transport.abort()


async def test_a_client_with_tls_1_2_is_refused(
    rig: Rig, operator: Operator, leaf: Leaf, tmp_path: Path
) -> None:
    version = ssl.TLSVersion.TLSv1_2
    async with raw(rig, tmp_path, leaf, maximum_version=version) as connection:
        await connection.begin()
        await connection.call()
        trailers = await connection.trailers()

    assert trailers["grpc-status"] == str(grpc.StatusCode.UNAUTHENTICATED.value[0])
    assert trailers["grpc-message"].startswith("TLSVersionTooLow: ")


async def test_a_connection_is_offered_four_streams(
    rig: Rig, operator: Operator, leaf: Leaf, tmp_path: Path
) -> None:
    async with raw(rig, tmp_path, leaf) as connection, asyncio.timeout(PATIENCE):
        await connection.begin()
        async for event in connection.events():
            if isinstance(event, h2.events.RemoteSettingsChanged):
                setting = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
                assert event.changed_settings[setting].new_value == 4
                return
    raise AssertionError("closed without SETTINGS")


async def test_a_message_beyond_the_cap_ends_the_call(
    rig: Rig, operator: Operator, leaf: Leaf
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()

    await agent.send(agent_pb2.AgentMessage(bye=agent_pb2.Bye(message="x" * 100_000)))

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await agent.read()
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def speaker_of_bytes(rig: Rig, leaf: Leaf) -> Agent:
    """Return an agent that may send bytes instead of messages."""
    agent = rig.agent(leaf)
    agent.call.cancel()
    agent.call = agent.channel.stream_stream(  # type: ignore[call-arg]
        "/derops.wire.v1.AgentLink/Connect",
        request_serializer=lambda said: (
            said if isinstance(said, bytes) else said.SerializeToString()
        ),
        response_deserializer=agent_pb2.GatewayMessage.FromString,
    )()
    return agent


async def test_bytes_that_are_no_message_end_the_stream_and_take_one_line_of_the_log(
    rig: Rig, operator: Operator, leaf: Leaf
) -> None:
    ended = ("derops_gateway_ended_streams_total", {"reason": "BadMessage"})
    before = REGISTRY.get_sample_value(*ended) or 0
    agent = speaker_of_bytes(rig, leaf)
    await agent.connect()

    with capture_logs() as events:
        await agent.send(b"\xff\xff\xff")
        bye = await agent.read_until("bye")
        await rig.log.connection("Disconnected")
        while await agent.read() is not grpc.aio.EOF:  # type: ignore[attr-defined]
            pass

    assert bye.reason == "BadMessage"
    assert REGISTRY.get_sample_value(*ended) == before + 1
    assert [(event["event"], event["reason"]) for event in events] == [
        ("agent.disconnected", "BadMessage")
    ]


async def test_bytes_that_are_no_hello_are_refused(
    rig: Rig, operator: Operator, leaf: Leaf
) -> None:
    agent = speaker_of_bytes(rig, leaf)

    with capture_logs() as events:
        await agent.send(b"\xff\xff\xff")
        code, details = await agent.refusal()

    assert code is grpc.StatusCode.UNAUTHENTICATED
    assert details.startswith("BadMessage: ")
    assert [event["event"] for event in events] == ["agent.refused"]


async def test_large_metadata_is_refused(rig: Rig, operator: Operator, leaf: Leaf) -> None:
    channel = rig.agent(leaf).channel
    metadata = (("padding", "x" * 9_000),)
    call = agent_pb2_grpc.AgentLinkStub(channel).Connect(metadata=metadata)  # type: ignore[no-untyped-call]

    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()

    assert raised.value.code() is not grpc.StatusCode.OK
    assert "metadata" in (raised.value.details() or "")


async def test_connections_beyond_the_bound_are_closed(
    rig: Rig, leaf: Leaf, tmp_path: Path
) -> None:
    await rig.stop()
    rig.max_agent_connections = 3
    await rig.start()
    await rig.operator().snapshot([rig.asset("battery", leaf)])
    agent = rig.agent(leaf)
    await agent.connect()

    async with raw(rig, tmp_path, leaf), raw(rig, tmp_path, leaf):
        async with raw(rig, tmp_path, None) as beyond, asyncio.timeout(EXCHANGE_SECONDS - 2):
            await beyond.closed_by_server()
        await agent.send(agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(agent_sent_us=1)))
        await agent.read_until("heartbeat_reply")


async def test_connections_that_never_get_to_a_call_are_closed(
    rig: Rig, operator: Operator, leaf: Leaf, tmp_path: Path
) -> None:
    """Without the options they would stay 120 s, 60 s, and for ever."""
    async with (
        raw(rig, tmp_path, None) as without_tls,
        raw(rig, tmp_path, leaf) as without_preface,
        raw(rig, tmp_path, leaf) as without_call,
        asyncio.timeout(LONGEST_TIMEOUT_SECONDS + SLACK_SECONDS),
    ):
        await without_call.begin()

        async def idle() -> None:
            async for _ in without_call.events():
                pass

        await asyncio.gather(without_tls.closed_by_server(), without_preface.closed_by_server())
        await idle()


async def test_a_fast_peer_gets_no_greater_window(
    rig: Rig, operator: Operator, leaf: Leaf, tmp_path: Path
) -> None:
    """What gRPC keeps of a stream that nobody reads yet is one window."""
    report = dispatch_pb2.DispatchReport(message="x" * 60_000)  # refused: nothing else happens
    frame = framed(agent_pb2.AgentMessage(report=report))
    data = framed(Agent(None, None).hello()) + frame * MAX_REFUSED_REPORTS  # type: ignore[arg-type]
    windows = [65_535]
    async with raw(rig, tmp_path, leaf) as connection, asyncio.timeout(30):
        await connection.begin()
        await connection.call()
        events = connection.events()
        while data:
            room = min(
                connection.http.local_flow_control_window(1), 16_384, len(data)
            )  # fmt: skip
            if room > 0:
                connection.http.send_data(1, data[:room])
                data = data[room:]
                await connection.flush()
                continue
            event = await anext(events)
            if isinstance(event, h2.events.RemoteSettingsChanged):
                setting = h2.settings.SettingCodes.INITIAL_WINDOW_SIZE
                if setting in event.changed_settings:
                    windows.append(event.changed_settings[setting].new_value)

    assert max(windows) <= 65_535


def framed(message: agent_pb2.AgentMessage) -> bytes:
    body = message.SerializeToString()
    return b"\0" + len(body).to_bytes(4, "big") + body
