"""The operator's stream to gateways that are real servers with real TLS."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from cryptography import x509
from prometheus_client import REGISTRY
from tests.counters import value_of
from tests.operator.making import acked, asset, at, dispatch, ended
from tests.pki import CLIENT, SERVER, Authority, write_identity
from tests.waiting import until

from derops.observability import Readiness
from derops.wire.v1 import agent_pb2, control_pb2, control_pb2_grpc, dispatch_pb2
from derops_operator import metrics
from derops_operator.gateways import wire
from derops_operator.gateways.desired import Desired
from derops_operator.gateways.intake import MAX_SAID_BYTES
from derops_operator.gateways.replicas import Fleet
from derops_operator.gateways.sync import GatewaySync
from derops_operator.gateways.views import Connectivity
from derops_operator.reconciling.actions import Submit
from derops_operator.settings import OperatorSettings

NAME = "derops-gateway-control"
Message = control_pb2.ReplicaMessage


@dataclass
class Gateway(control_pb2_grpc.ControlServicer):
    """A replica that accepts everything and says what the test tells it to."""

    name: str
    heard: list[control_pb2.OperatorMessage] = field(default_factory=list)
    streams: int = 0
    port: int = 0
    contexts: list[Any] = field(default_factory=list)
    takes_batches: bool = False
    written: list[int] = field(default_factory=list)
    """How many messages came in each."""

    async def Sync(self, requests: AsyncIterator[Any], context: Any) -> None:  # noqa: N802
        self.streams += 1
        self.contexts.append(context)
        hello = control_pb2.ReplicaHello(
            replica=self.name, state_since_us=at(0), takes_batches=self.takes_batches
        )
        await context.write(Message(hello=hello))
        async for message in requests:
            messages = list(message.batch.messages) or [message]
            self.heard += messages
            self.written.append(len(messages))
            if messages[-1].WhichOneof("kind") not in {"snapshot_begin"} and not self._inside():
                await context.write(Message(accepted_version=messages[-1].version))

    def _inside(self) -> bool:
        kinds = [message.WhichOneof("kind") for message in self.heard]
        return kinds.count("snapshot_begin") > kinds.count("snapshot_end")

    async def say(self, message: control_pb2.ReplicaMessage) -> None:
        await self.contexts[-1].write(message)

    def kinds(self) -> list[str]:
        return [str(message.WhichOneof("kind")) for message in self.heard]


class Bench:
    """A GatewaySync and the gateways it is told of."""

    def __init__(self, directory: Path) -> None:
        write_identity(directory, NAME, CLIENT + SERVER)
        self.directory = directory
        self.desired = Desired(operator_start_ms=5)
        self.desired.put_asset(wire.asset_message(asset(), {}))
        self.desired.put_dispatch(wire.dispatch_message(dispatch(), "uid-battery", Submit()))
        self.fleet = Fleet(at(0))
        self.readiness = Readiness()
        self.concerned: list[str] = []
        self.strange: dict[str, str] = {}
        """Why the word of an asset of this name does not count."""

        self.servers: list[Any] = []
        self.gateways: list[Gateway] = []

    def read(self, file: str) -> bytes:
        return (self.directory / file).read_bytes()

    async def add_gateway(self, name: str, port: int = 0) -> Gateway:
        gateway = Gateway(name)
        pair = [(self.read("tls.key"), self.read("tls.crt"))]
        credentials = grpc.ssl_server_credentials(
            pair,
            self.read("ca.crt"),
            require_client_auth=True,
        )
        server = grpc.aio.server()
        add: Any = control_pb2_grpc.add_ControlServicer_to_server
        add(gateway, server)
        gateway.port = server.add_secure_port(f"127.0.0.1:{port}", credentials)
        await server.start()
        self.servers.append(server)
        self.gateways.append(gateway)
        return gateway

    def sync(self, knows: Callable[[str], bool] = lambda _: True) -> GatewaySync:
        settings = OperatorSettings(
            gateways=tuple(f"127.0.0.1:{gateway.port}" for gateway in self.gateways),
            control_tls_directory=self.directory,
            server_ca_file=self.directory / "ca.crt",
            trust_domain="derops.test",
        )
        return GatewaySync(
            settings,
            self.desired,
            self.fleet,
            self.readiness,
            self.concerned.append,
            lambda: None,
            lambda message: self.strange.get(message.asset_name),
            knows,
        )


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    for server in bench.servers:
        await server.stop(None)


class Running:
    """A GatewaySync that runs inside the block."""

    def __init__(self, sync: GatewaySync) -> None:
        self._sync = sync

    async def __aenter__(self) -> GatewaySync:
        self._task = asyncio.create_task(self._sync.run())
        return self._sync

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def test_a_gateway_gets_the_snapshot_then_changes_and_is_heard(bench: Bench) -> None:
    gateway = await bench.add_gateway("one")

    async with Running(bench.sync()) as sync:
        await until(lambda: bench.readiness.report()[0])
        assert gateway.kinds() == ["snapshot_begin", "asset", "dispatch", "snapshot_end"]
        assert bench.fleet.accepted_version() == bench.desired.version

        bench.desired.remove_dispatch("uid-peak")
        sync.record(control_pb2.HeadendTransition(dispatch_uid="uid-peak"))
        await until(lambda: len(gateway.heard) == 6)
        assert gateway.kinds()[4:] == ["dispatch_removed", "transition"]

        session = control_pb2.Session(asset_uid="uid-battery", connected=True, epoch=3)
        await gateway.say(Message(session=session))
        delivery = control_pb2.Delivery(dispatch_uid="uid-peak", generation=1, written_us=at(1))
        await gateway.say(Message(delivery=delivery))
        report = control_pb2.AgentReport(report=acked(), received_us=at(2))
        await gateway.say(Message(report=report))
        await until(lambda: len(bench.concerned) == 3)

    view = bench.fleet.dispatch("uid-peak", 1, 1)
    assert view.written_us == at(1)
    assert view.report == acked()
    assert bench.fleet.session("uid-battery", at(3)).link is Connectivity.UNKNOWN
    assert not bench.readiness.report()[0]


async def test_a_name_that_does_not_resolve_is_told_once_for_each_reason(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons = ["not known", "no address", "not known", "no address", "", "no address"]

    async def resolve(targets: tuple[str, ...]) -> tuple[set[str], dict[str, str]]:
        why = reasons.pop(0)
        return set(), dict.fromkeys(targets, why) if why else {}

    monkeypatch.setattr("derops_operator.gateways.sync.resolve_addresses", resolve)
    gateway = await bench.add_gateway("one")
    sync = bench.sync()

    with structlog.testing.capture_logs() as lines:
        while reasons:
            await sync._follow_addresses()

    told = [line["why"] for line in lines if line["event"] == "gateway.not_resolved"]
    assert told == ["not known", "no address", "no address"]
    assert f"127.0.0.1:{gateway.port}: no address" in str(bench.readiness.report())


async def test_a_batch_is_heard_like_its_messages(bench: Bench) -> None:
    gateway = await bench.add_gateway("one")

    async with Running(bench.sync()):
        await until(lambda: bench.readiness.report()[0])
        delivery = control_pb2.Delivery(dispatch_uid="uid-peak", generation=1, written_us=at(1))
        report = control_pb2.AgentReport(report=acked())
        messages = [Message(delivery=delivery), Message(report=report)]
        await gateway.say(Message(batch=control_pb2.ReplicaBatch(messages=messages)))
        await until(lambda: len(bench.concerned) == 2)

    view = bench.fleet.dispatch("uid-peak", 1, 1)
    assert view.written_us == at(1)
    assert view.report == acked()
    assert gateway.heard[0].snapshot_begin.takes_batches


async def test_what_there_is_to_say_at_once_goes_to_a_gateway_that_takes_it_as_one(
    bench: Bench,
) -> None:
    gateway = await bench.add_gateway("one")
    gateway.takes_batches = True

    async with Running(bench.sync()) as sync:
        await until(lambda: bench.readiness.report()[0])
        bench.desired.remove_dispatch("uid-peak")
        sync.record(control_pb2.HeadendTransition(dispatch_uid="uid-peak"))
        await until(lambda: "transition" in gateway.kinds())

    assert gateway.kinds()[4:] == ["dispatch_removed", "transition"]
    assert gateway.written[-1] == 2
    assert bench.fleet.replicas["one"].sent_version == bench.desired.version


async def test_a_report_that_makes_no_sense_is_left_out(bench: Bench) -> None:
    gateway = await bench.add_gateway("one")

    async with Running(bench.sync()):
        await until(lambda: bench.readiness.report()[0])
        odd = acked()
        odd.phase = "Dancing"
        await gateway.say(Message(report=control_pb2.AgentReport(report=odd)))
        await gateway.say(Message(report=control_pb2.AgentReport(report=acked())))
        await until(lambda: bench.concerned)

    assert bench.concerned == ["uid-peak"]


async def test_a_report_that_does_not_count_is_counted_and_told_to_nobody(bench: Bench) -> None:
    gateway = await bench.add_gateway("one")
    bench.strange = {"stranger": "AnotherAsset"}

    async with Running(bench.sync()):
        await until(lambda: bench.readiness.report()[0])
        strange = control_pb2.AgentReport(report=ended(), asset_name="stranger")
        await gateway.say(Message(report=strange))
        await gateway.say(Message(report=control_pb2.AgentReport(report=acked())))
        await until(lambda: bench.concerned)

    assert bench.concerned == ["uid-peak"]
    assert bench.fleet.dispatch("uid-peak", 1, 1).report == acked()


async def test_a_gateway_that_comes_back_gets_a_new_snapshot(bench: Bench) -> None:
    first = await bench.add_gateway("one")

    async with Running(bench.sync()):
        await until(lambda: bench.readiness.report()[0])
        await bench.servers[0].stop(None)
        await until(lambda: not bench.readiness.report()[0])
        bench.desired.remove_dispatch("uid-peak")

        second = await bench.add_gateway("one", port=first.port)
        await until(lambda: bench.readiness.report()[0])

    assert second.kinds() == ["snapshot_begin", "asset", "snapshot_end"]


async def test_the_highest_epoch_goes_to_every_replica(bench: Bench) -> None:
    one, two = await bench.add_gateway("one"), await bench.add_gateway("two")

    async with Running(bench.sync()):
        await until(lambda: len(bench.fleet.replicas) == 2)
        session = control_pb2.Session(asset_uid="uid-battery", connected=True, epoch=9)
        await one.say(Message(session=session))
        await until(lambda: "epoch_seen" in two.kinds())

    assert bench.fleet.expected == 2
    assert two.heard[-1].epoch_seen.epoch == 9


async def test_history_waits_for_the_first_gateway(bench: Bench) -> None:
    gateway = await bench.add_gateway("one")
    sync = bench.sync()
    sync.record(control_pb2.HeadendTransition(dispatch_uid="uid-early"))

    async with Running(sync):
        await until(lambda: "transition" in gateway.kinds())

    assert gateway.kinds().index("snapshot_end") < gateway.kinds().index("transition")


async def test_a_replica_that_reads_nothing_is_given_up_in_mid_write(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits for it is bounded, and the writer, which is stuck, does not have to notice."""
    monkeypatch.setattr("derops_operator.gateways.desired.BACKLOG_BYTES", 100_000)
    gateway = await bench.add_gateway("gateway-0")
    overruns = value_of(metrics.BACKLOG_OVERRUNS)

    async with Running(bench.sync()):
        await until(lambda: bench.fleet.accepted_version() == bench.desired.version)
        for number in range(200):  # in one step of the loop: nothing is written meanwhile
            bench.desired.put_dispatch(dispatch_pb2.Dispatch(uid=f"d-{number}"))
        await until(lambda: gateway.streams == 2)
        await until(lambda: bench.fleet.accepted_version() == bench.desired.version)

    assert value_of(metrics.BACKLOG_OVERRUNS) == overruns + 1


async def test_history_that_no_gateway_takes_for_too_long_is_counted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("derops_operator.gateways.sync.HISTORY_LIMIT", 3)
    await bench.add_gateway("never asked")
    sync, dropped = bench.sync(), value_of(metrics.HISTORY_DROPPED)
    for number in range(5):
        sync.record(control_pb2.HeadendTransition(dispatch_uid=f"d-{number}"))

    assert value_of(metrics.HISTORY_DROPPED) == dropped + 2
    assert [sync._history.pop().dispatch_uid for _ in range(3)] == ["d-2", "d-3", "d-4"]
    assert sync._history.first() is None


async def test_what_a_lying_replica_says_of_nothing_is_not_kept(bench: Bench) -> None:
    gateway = await bench.add_gateway("gateway-0")

    async with Running(bench.sync({"uid-battery", "uid-peak"}.__contains__)):
        await until(lambda: bench.readiness.report()[0])
        for number in range(100):
            uid = f"uid-{number}"
            await gateway.say(Message(session=control_pb2.Session(asset_uid=uid, epoch=1)))
            await gateway.say(Message(delivery=control_pb2.Delivery(dispatch_uid=uid)))
        await gateway.say(Message(delivery=control_pb2.Delivery(dispatch_uid="uid-peak")))
        await until(lambda: bench.concerned)

    assert bench.fleet.known_uids() == {"uid-peak"}


async def test_a_replica_that_says_too_much_at_once_is_not_heard_further(bench: Bench) -> None:
    gateway = await bench.add_gateway("gateway-0")

    async with Running(bench.sync()):
        await until(lambda: bench.readiness.report()[0])
        much = control_pb2.Session(asset_uid="uid-battery", end_reason="x" * (MAX_SAID_BYTES + 1))
        await gateway.say(Message(session=much))
        await until(lambda: gateway.streams == 2)

    assert bench.fleet.known_uids() == set()


async def test_what_is_said_of_a_device_is_held_to_bounds_and_to_assets_that_there_are(
    bench: Bench,
) -> None:
    gateway = await bench.add_gateway("one")
    long = agent_pb2.DeviceFacts(silent_since_us=5, silence="x" * 100_000)

    async with Running(bench.sync(lambda uid: uid == "uid-battery")):
        await until(lambda: bench.readiness.report()[0])
        for uid in ("uid-nobody", "uid-battery"):
            state = control_pb2.DeviceState(asset_uid=uid, facts=long, received_us=at(2))
            await gateway.say(Message(device=state))
        session = control_pb2.Session(asset_uid="uid-battery", connected=True, since_us=at(1))
        await gateway.say(Message(session=session))
        await until(lambda: len(bench.concerned) == 2)
        facts = bench.fleet.session("uid-battery", at(3)).device

    assert bench.concerned == ["uid-battery", "uid-battery"]
    assert facts is not None
    assert facts.silence == "x" * 300
    assert bench.fleet.known_uids() == {"uid-battery"}


async def test_when_our_certificate_is_over_is_told(bench: Bench) -> None:
    await bench.add_gateway("gateway-0")
    sync = bench.sync()
    identity = await sync._read_identity()
    ends = x509.load_pem_x509_certificate(identity.certificate).not_valid_after_utc
    name = "derops_operator_certificate_expiry_timestamp_seconds"
    assert REGISTRY.get_sample_value(name) == ends.timestamp()
    assert "certificate of the operator" not in bench.readiness.report()[1]

    over = Authority("x").leaf([], begins=timedelta(-2), ends=timedelta(-1))
    (bench.directory / "tls.crt").write_bytes(over.pem)
    (bench.directory / "tls.key").write_bytes(over.key)
    await sync._read_identity()

    assert "degraded certificate of the operator: over since" in bench.readiness.report()[1]


async def test_what_only_a_newer_operator_knows_is_passed_over(bench: Bench) -> None:
    """So did an operator that did not know yet what gateways say of log, writer and database."""
    gateway = await bench.add_gateway("one")
    unknown = Message.FromString(b"\xc2\x0c\x02\x08\x01")  # field 200
    assert unknown.ByteSize()
    link = control_pb2.LinkState(link="Writer", reason="WriterBehind", message="61 s")

    async with Running(bench.sync()):
        await until(lambda: bench.readiness.report()[0])
        await gateway.say(unknown)
        await gateway.say(Message(headend=control_pb2.HeadendState(links=[link])))
        await until(lambda: bench.fleet.headend.of("one"))

    (told,) = bench.fleet.headend.of("one").values()
    assert (told.fault, told.message) == ("WriterBehind", "61 s")
    assert gateway.streams == 1
