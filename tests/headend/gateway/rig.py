"""A gateway on loopback, agents and an operator that speak to it over mTLS, and a log in hand."""

import asyncio
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from tests.pki import SERVER, TRUST_DOMAIN, Authority, Leaf
from tests.stack.mounts import write_mount

from derops.observability import Readiness
from derops.wire.v1 import (
    agent_pb2,
    agent_pb2_grpc,
    control_pb2,
    control_pb2_grpc,
    dispatch_pb2,
    log_pb2,
)
from derops_headend.eventlog.words import FileWords
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.gateway.listener import CredentialFiles
from derops_headend.gateway.server import Gateway, GatewayOptions

PATIENCE = 20.0


def now_us() -> int:
    return time.time_ns() // 1000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class FakeLog:
    """An event log whose durability the test decides."""

    def __init__(self) -> None:
        self.entries: list[log_pb2.LogEntry] = []
        self.failure: Exception | None = None
        self.taken = 0.0
        self.appends = 0
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self._grown = asyncio.Condition()

    async def append(self, entries: Sequence[log_pb2.LogEntry]) -> None:
        self.asked.set()
        await self.open.wait()
        if self.failure is not None:
            raise self.failure
        self.entries.extend(entries)
        self.appends += 1
        async with self._grown:
            self._grown.notify_all()

    def fill(self) -> float:
        return self.taken

    def close(self) -> None:
        pass

    def of(self, kind: log_pb2.EntryKind) -> list[log_pb2.LogEntry]:
        return [entry for entry in self.entries if entry.kind == kind]

    async def connection(self, event: str) -> log_pb2.ConnectionEvent:
        """Wait for the latest connection event of a kind."""
        async with asyncio.timeout(PATIENCE), self._grown:
            while True:
                for entry in reversed(self.of(log_pb2.CONNECTION)):
                    found = log_pb2.ConnectionEvent.FromString(entry.body)
                    if found.event == event:
                        return found
                await self._grown.wait()


class Peer:
    """One bidirectional call."""

    def __init__(self, channel: grpc.aio.Channel, call: Any) -> None:
        self.channel, self.call = channel, call

    async def send(self, message: Any) -> None:
        await self.call.write(message)

    async def read(self) -> Any:
        async with asyncio.timeout(PATIENCE):
            return await self.call.read()

    async def read_until(self, kind: str) -> Any:
        """Return the next message of a kind; others are skipped."""
        while True:
            message = await self.read()
            assert message is not grpc.aio.EOF, f"ended before {kind}"  # type: ignore[attr-defined]
            if message.WhichOneof("kind") == kind:
                return getattr(message, kind)

    async def refusal(self) -> tuple[grpc.StatusCode, str]:
        """Return how the call ended without a word before."""
        try:
            message = await self.read()
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        raise AssertionError(f"not refused: {message}")

    async def close(self) -> None:
        self.call.cancel()
        await self.channel.close(None)


class Agent(Peer):
    first_sequence = 1
    ledger_id = "ledger-1"

    def hello(self, epoch: int = 1, instance: str = "instance-1") -> agent_pb2.AgentMessage:
        return agent_pb2.AgentMessage(
            hello=agent_pb2.Hello(
                protocol=1,
                epoch=epoch,
                instance_id=instance,
                ledger_id=self.ledger_id,
                outbox_id="outbox-1",
                first_sequence=self.first_sequence,
                capability=agent_pb2.Capability(modes=["ActivePower"], driver="simulated"),
            )
        )

    async def connect(
        self, epoch: int = 1, instance: str = "instance-1"
    ) -> list[agent_pb2.GatewayMessage]:
        """Say Hello; return all up to the first credit."""
        await self.send(self.hello(epoch, instance))
        messages: list[agent_pb2.GatewayMessage] = []
        while not messages or messages[-1].WhichOneof("kind") != "credit":
            messages.append(await self.read())
        return messages

    async def report(self, uid: str, phase: str = "Acked", sequence: int = 1) -> None:
        report = dispatch_pb2.DispatchReport(
            sequence=sequence, ledger_id=self.ledger_id, dispatch_uid=uid, phase=phase
        )
        await self.send(agent_pb2.AgentMessage(report=report))

    async def telemetry(self, sequence: int, **changes: Any) -> None:
        facts: dict[str, Any] = {
            "sequence": sequence,
            "outbox_id": "outbox-1",
            "t0_us": now_us(),
            "dt_us": [0, 1_000_000],
            "columns": [agent_pb2.Column(quantity=agent_pb2.ACTIVE_POWER_WATTS, values=[1.0, 2.0])],
        }
        batch = agent_pb2.TelemetryBatch(**(facts | changes))
        await self.send(agent_pb2.AgentMessage(telemetry=batch))


async def refusal_of(agent: Agent, epoch: int, instance: str) -> str:
    """Say Hello; return the reason of the refusal."""
    await agent.send(agent.hello(epoch, instance))
    return (await agent.refusal())[1].partition(":")[0]


class Operator(Peer):
    version = 0

    async def say(self, *, version: int | None = None, **kind: Any) -> int:
        self.version = self.version + 1 if version is None else version
        await self.send(control_pb2.OperatorMessage(version=self.version, **kind))
        return self.version

    async def snapshot(
        self,
        assets: Sequence[dispatch_pb2.Asset] = (),
        dispatches: Sequence[dispatch_pb2.Dispatch] = (),
        *,
        start_ms: int = 1000,
        era: int = 0,
        unread: Sequence[control_pb2.Unread] = (),
    ) -> None:
        """Send a complete snapshot and wait until it is accepted."""
        begin = control_pb2.SnapshotBegin(operator_start_ms=start_ms, era=era)
        await self.say(snapshot_begin=begin)
        for asset in assets:
            await self.say(asset=asset)
        for dispatch in dispatches:
            await self.say(dispatch=dispatch)
        for each in unread:
            await self.say(unread=each)
        end = control_pb2.SnapshotEnd(
            assets=len(assets), dispatches=len(dispatches), unread=len(unread)
        )
        await self.accepted(await self.say(snapshot_end=end))

    async def accepted(self, version: int) -> None:
        while await self.read_until("accepted_version") < version:
            pass

    async def delivery(self, uid: str, generation: int = 1) -> control_pb2.Delivery:
        while True:
            delivery = await self.read_until("delivery")
            if (delivery.dispatch_uid, delivery.generation) == (uid, generation):
                return delivery  # type: ignore[no-any-return]


class Rig:
    """Everything for one test; ``start`` may be called again after ``stop``."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.server_ca, self.agent_ca = Authority("server"), Authority("agent")
        self.control_ca = Authority("control")
        self.log = FakeLog()
        self.readiness = Readiness()
        self.replica = "gateway-0"
        self.heartbeat_seconds = 10
        self.hello_seconds = 5.0
        self.max_agent_connections = 100
        self.agent_listen = "127.0.0.1:0"
        self.gateway: Gateway | None = None
        self._peers: list[Peer] = []
        self.operator_file = directory / "operator" / "tls.crt"
        self.operator_file.parent.mkdir(exist_ok=True)
        self.renew_operator()

    def asset(
        self, name: str, current: Leaf | None = None, uid: str = "", **facts: Any
    ) -> dispatch_pb2.Asset:
        identity = dispatch_pb2.IdentityLedger(
            current=current.known if current is not None else None,
            quarantine=facts.pop("quarantine", ""),
        )
        return dispatch_pb2.Asset(
            id=dispatch_pb2.AssetId(uid=uid or f"uid-{name}", namespace="pilot", name=name),
            generation=1,
            identity=identity,
            **facts,
        )

    def dispatch(self, uid: str, asset: str = "battery", **facts: Any) -> dispatch_pb2.Dispatch:
        defaults: dict[str, Any] = {"uid": uid, "asset_uid": f"uid-{asset}", "generation": 1}
        return dispatch_pb2.Dispatch(**defaults | facts)

    def make_operator(self, **changes: Any) -> Leaf:
        """Return a certificate of the control CA with the operator's name, and a new key."""
        name = x509.UniformResourceIdentifier(f"spiffe://{TRUST_DOMAIN}/operator")
        return self.control_ca.leaf([name], **changes)

    def renew_operator(self, **changes: Any) -> Leaf:
        """Issue the operator's certificate anew and put it where the gateway reads it."""
        self.operator_leaf = self.make_operator(**changes)
        self.operator_file.write_bytes(self.operator_leaf.pem)
        return self.operator_leaf

    def join(self, other: "Rig") -> None:
        """Become another replica beside ``other``: the same authorities and operator."""
        self.server_ca, self.agent_ca = other.server_ca, other.agent_ca
        self.control_ca, self.operator_leaf = other.control_ca, other.operator_leaf
        self.operator_file.write_bytes(other.operator_file.read_bytes())

    async def start(self) -> None:
        self.renew_ports()
        options = GatewayOptions(
            replica=self.replica,
            trust_domain=TRUST_DOMAIN,
            agent_listen=self.agent_listen,
            agent_files=self.files_of("agent"),
            control_listen="127.0.0.1:0",
            control_files=self.files_of("control"),
            operator_certificate_file=self.operator_file,
            heartbeat_seconds=self.heartbeat_seconds,
            hello_seconds=self.hello_seconds,
            max_agent_connections=self.max_agent_connections,
        )
        store = DesiredStore(self.directory / "desired.db", now_us())
        words = FileWords(self.directory)
        self.gateway = Gateway(
            options, store=store, log=self.log, words=words, readiness=self.readiness
        )
        await self.gateway.start()

    def renew_ports(self) -> None:
        """Issue what both ports show, and whom they hear, as the authorities are now."""
        self.write_port("agent", self.server_ca, "derops-gateway", self.agent_ca.pem)
        self.write_port("control", self.control_ca, "derops-gateway-control", self.control_ca.pem)

    def write_port(self, port: str, ca: Authority, name: str, clients: bytes) -> None:
        """Issue what a port shows, and put it where the gateway reads it, with its client CA."""
        files, leaf = self.files_of(port), ca.leaf([x509.DNSName(name)], usages=SERVER)
        content = {"tls.key": leaf.key, "tls.crt": leaf.pem, "ca.crt": clients}
        write_mount(files.directory, content)

    def files_of(self, port: str) -> CredentialFiles:
        """Return where the credentials of a port lie."""
        directory = self.directory / f"{port}-port"
        return CredentialFiles(
            setting=f"DEROPS_GATEWAY_{port.upper()}_TLS_DIRECTORY",
            directory=directory,
            client_ca=directory / "ca.crt",
        )

    async def stop(self) -> None:
        for peer in self._peers:
            await peer.close()
        self._peers.clear()
        if self.gateway is not None:
            await self.gateway.stop()
            self.gateway = None

    def agent(self, leaf: Leaf) -> Agent:
        assert self.gateway is not None
        channel = self._channel(self.gateway.agent_port, self.server_ca, leaf, "derops-gateway")
        peer = Agent(channel, agent_pb2_grpc.AgentLinkStub(channel).Connect())  # type: ignore[no-untyped-call]
        self._peers.append(peer)
        return peer

    def operator(self, leaf: Leaf | None = None) -> Operator:
        assert self.gateway is not None
        channel = self._channel(
            self.gateway.control_port,
            self.control_ca,
            leaf or self.operator_leaf,
            "derops-gateway-control",
        )
        peer = Operator(channel, control_pb2_grpc.ControlStub(channel).Sync())  # type: ignore[no-untyped-call]
        self._peers.append(peer)
        return peer

    def _channel(self, port: int, ca: Authority, leaf: Leaf, name: str) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            f"127.0.0.1:{port}",
            grpc.ssl_channel_credentials(ca.pem, leaf.key, leaf.pem),
            options=[
                ("grpc.ssl_target_name_override", name),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.http2.bdp_probe", 0),  # windows stay small: who does not read is full soon
                ("grpc.enable_retries", 0),
            ],
        )
