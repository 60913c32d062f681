"""Real agents, with somebody in between who writes down what they send and what they are told."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any

import grpc
from cryptography import x509
from tests.field.agents import Agents
from tests.field.headend import FieldAsset, FieldHeadend
from tests.field.journal import Journal, sent_batch, sent_gap
from tests.pki import SERVER
from tests.stack import places

from derops.wire.v1 import agent_pb2

_END: Any = vars(grpc.aio)["EOF"]
_METHOD = "/derops.wire.v1.AgentLink/Connect"


class Recorder:
    """A gateway to the agents, an agent to the gateway; it passes every byte on, and keeps books.

    Args:
        headend: Whose gateway.
        assets: Whose streams it can pass on.
    """

    def __init__(self, headend: FieldHeadend, assets: Sequence[FieldAsset]) -> None:
        self.journals: dict[tuple[str, str], Journal] = {}
        """By asset uid and outbox id."""
        self.address = f"127.0.0.1:{places.free_port()}"
        self._headend = headend
        self._assets = {asset.name: asset for asset in assets}
        self._calls: set[Any] = set()
        self._passing = asyncio.Event()
        self._passing.set()

    async def start(self) -> None:
        """Listen."""
        leaf = self._headend.server_ca.leaf([x509.DNSName("derops-gateway")], usages=SERVER)
        credentials = grpc.ssl_server_credentials(
            [(leaf.key, leaf.pem)], self._headend.agent_ca.pem, require_client_auth=True
        )
        self._server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(self._connect)
        service, method = _METHOD.strip("/").split("/")
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(service, {method: handler}),)
        )
        self._server.add_secure_port(self.address, credentials)
        await self._server.start()

    async def stop(self) -> None:
        """Cut all streams and end."""
        await self._server.stop(None)

    def cut(self) -> None:
        """End all streams as links do that drop."""
        for call in list(self._calls):
            call.cancel()

    def silence(self) -> None:
        """Pass nothing on in either direction; the connections stay."""
        self._passing.clear()

    def resume(self) -> None:
        """Pass on what is there, and all that comes."""
        self._passing.set()

    async def _connect(self, requests: AsyncIterator[bytes], context: Any) -> None:
        (name,) = (
            uri.decode().rpartition("/")[2]
            for uri in context.auth_context()["x509_subject_alternative_name"]
        )
        asset = self._assets[name]
        channel = grpc.aio.secure_channel(
            self._headend.gateway_address,
            grpc.ssl_channel_credentials(
                self._headend.server_ca.pem, asset.leaf.key, asset.leaf.pem
            ),
            options=[
                ("grpc.ssl_target_name_override", "derops-gateway"),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        async with channel:
            connect: Any = channel.stream_stream
            call = connect(_METHOD)()
            self._calls.add(call)
            stream = _Stream(self.journals, asset.uid)
            up = asyncio.create_task(self._pass_up(requests, call, stream))
            try:
                await self._pass_down(call, context, stream)
            except grpc.aio.AioRpcError as error:
                await context.abort(error.code(), error.details())
            finally:
                self._calls.discard(call)
                call.cancel()
                up.cancel()
                await asyncio.gather(up, return_exceptions=True)

    async def _pass_up(self, requests: AsyncIterator[bytes], call: Any, stream: "_Stream") -> None:
        with suppress(grpc.RpcError, asyncio.InvalidStateError):
            async for wire in requests:
                await self._passing.wait()
                stream.went_up(agent_pb2.AgentMessage.FromString(wire))
                await call.write(wire)
        await self._passing.wait()
        call.cancel()

    async def _pass_down(self, call: Any, context: Any, stream: "_Stream") -> None:
        while (wire := await call.read()) is not _END:
            await self._passing.wait()
            stream.came_down(agent_pb2.GatewayMessage.FromString(wire))
            await context.write(wire)


class _Stream:
    """Keeps the journal of one stream."""

    def __init__(self, journals: dict[tuple[str, str], Journal], uid: str) -> None:
        self._journals, self._uid = journals, uid
        self._journal: Journal | None = None

    def went_up(self, message: agent_pb2.AgentMessage) -> None:
        kind = message.WhichOneof("kind")
        if kind == "hello":
            key = (self._uid, message.hello.outbox_id)
            self._journal = self._journals.setdefault(key, Journal(*key))
            self._journal.hello(message.hello.first_sequence)
        elif self._journal is not None and kind == "telemetry":
            self._journal.record(message.telemetry.sequence, sent_batch(message.telemetry))
        elif self._journal is not None and kind == "gap":
            self._journal.record(message.gap.sequence, sent_gap(message.gap))

    def came_down(self, message: agent_pb2.GatewayMessage) -> None:
        if self._journal is not None and message.HasField("credit"):
            self._journal.acknowledge(message.credit.acknowledged_through, time.monotonic())


class RecordedAgents(Agents):
    """Real agents behind a recorder."""

    def __init__(self, headend: FieldHeadend, assets: Sequence[FieldAsset]) -> None:
        self.recorder = Recorder(headend, assets)
        super().__init__(headend, assets, gateway_address=self.recorder.address)

    @property
    def journals(self) -> list[Journal]:
        """What was sent and acknowledged."""
        return list(self.recorder.journals.values())
