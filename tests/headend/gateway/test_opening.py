"""What an agent's stream begins with, where something changes while it is being opened."""

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.headend.gateway.rig import FakeLog

from derops.ids import AssetName
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_headend.access.certificates import AgentCertificate
from derops_headend.fleet.desired import Revision, Snapshot
from derops_headend.gateway.agent_link import stream_parts_of
from derops_headend.gateway.agent_stream import AgentStream
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.gateway.exchange import Exchange
from derops_headend.gateway.log_appender import LogAppender

CERTIFICATE = AgentCertificate(
    asset=AssetName("ns", "battery"), serial_number="1", public_key_sha256="2", not_after_us=2**62
)
ASSET = dispatch_pb2.Asset(
    id=dispatch_pb2.AssetId(uid="asset-1", namespace="ns", name="battery"),
    identity=dispatch_pb2.IdentityLedger(
        current=dispatch_pb2.KnownCertificate(serial_number="1", public_key_sha256="2")
    ),
)


class SlowAgent:
    """A call whose peer takes nothing until it is let."""

    def __init__(self, *sends: agent_pb2.AgentMessage) -> None:
        self.sends = list(sends)
        self.written: list[agent_pb2.GatewayMessage] = []
        self.asked, self.takes = asyncio.Event(), asyncio.Event()
        self.whole, self.settled = asyncio.Event(), asyncio.Event()
        self.silent = asyncio.Event()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    async def write(self, message: agent_pb2.GatewayMessage) -> None:
        self.asked.set()
        await self.takes.wait()
        self.written.append(message)
        if message.HasField("sync_end"):
            self.whole.set()
        if message.HasField("settled"):
            self.settled.set()

    async def read(self) -> Any:
        if self.sends:
            return self.sends.pop()
        self.silent.set()
        return await asyncio.Future()


class Listener:
    """The operator's stream."""

    def __init__(self) -> None:
        self.told: list[control_pb2.ReplicaMessage] = []

    def tell(self, message: control_pb2.ReplicaMessage) -> None:
        self.told.append(message)

    def has_room_for_stray(self, report: control_pb2.AgentReport) -> bool:
        return True

    def end(self, reason: str, message: str) -> None:
        raise AssertionError(f"{reason}: {message}")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DesiredStore]:
    store = DesiredStore(tmp_path / "desired.db", 1)
    yield store
    store.close()


async def _stream(
    store: DesiredStore, agent: Any, operator: "Listener", *orders: dispatch_pb2.Dispatch
) -> tuple[Exchange, AgentStream]:
    """Return a stream that is the live one of its asset, and not served yet."""
    exchange = Exchange(
        replica="gateway-0",
        store=store,
        journal=LogAppender(FakeLog(), "gateway-0", lambda: 10),
        admission=Credit(),  # type: ignore[arg-type]
        now_us=lambda: 10,
    )
    exchange.operator.attach(operator)
    revision = Revision(operator_start_ms=1, version=1)
    await exchange.replace(
        operator, Snapshot(revision=revision, assets=(ASSET,), dispatches=orders)
    )
    stream = AgentStream(
        context=agent,
        parts=stream_parts_of(exchange),
        certificate=CERTIFICATE,
        asset=ASSET,
        hello=agent_pb2.Hello(
            epoch=1, instance_id="i", ledger_id="l", outbox_id="o", first_sequence=1
        ),
        opened_us=10,
        heartbeat_seconds=10,
        monotonic_us=lambda: 10,
    )
    exchange.open(stream)
    return exchange, stream


async def test_an_order_withdrawn_while_the_agent_is_welcomed_is_not_sent(
    store: DesiredStore,
) -> None:
    operator, agent = Listener(), SlowAgent()
    order = dispatch_pb2.Dispatch(uid="d1", asset_uid="asset-1", generation=1)
    exchange, stream = await _stream(store, agent, operator, order)
    commits = asyncio.create_task(exchange.deliveries.writes.run())
    serving = asyncio.create_task(stream.serve())
    await agent.asked.wait()

    withdrawn = dispatch_pb2.Dispatch(uid="d1", asset_uid="asset-1", generation=1, cancelled=True)
    await exchange.apply(operator, [control_pb2.OperatorMessage(version=2, dispatch=withdrawn)])
    agent.takes.set()
    await agent.whole.wait()
    stream.end("Done", "")
    await serving
    exchange.deliveries.writes.close()
    await commits

    deliveries = [m.delivery for m in operator.told if m.HasField("delivery")]
    assert deliveries[-1].written_us == 0
    assert not any(message.HasField("dispatch") for message in agent.written)


async def test_a_change_before_the_stream_is_served_comes_behind_its_snapshot(
    store: DesiredStore,
) -> None:
    agent = SlowAgent()
    _, stream = await _stream(store, agent, Listener())
    stream.send(agent_pb2.GatewayMessage(settled=agent_pb2.Settled(dispatch_uid="d1")))
    agent.takes.set()
    serving = asyncio.create_task(stream.serve())
    await agent.settled.wait()
    stream.end("Done", "")
    await serving

    kinds = [message.WhichOneof("kind") for message in agent.written]
    assert kinds == ["welcome", "sync_begin", "asset", "sync_end", "settled", "bye"]


async def test_a_message_that_was_taken_is_not_kept_until_the_next(store: DesiredStore) -> None:
    """A message of the largest size for each of ten thousand agents would be 640 MB."""
    batch = agent_pb2.TelemetryBatch(sequence=1, outbox_id="o", t0_us=1, dt_us=[0])
    agent = SlowAgent(agent_pb2.AgentMessage(telemetry=batch))
    message = agent.sends[0]
    _, stream = await _stream(store, agent, Listener())
    serving = asyncio.create_task(stream.serve())
    await agent.silent.wait()

    held_by_test = sys.getrefcount(object())
    assert sys.getrefcount(message) == held_by_test + 1

    agent.takes.set()
    stream.end("Done", "")
    await serving


class Credit:
    """Telemetry is not the matter here."""

    def request(self, _: object) -> None:
        return None

    def forget(self, _: object) -> None:
        return None

    def count(self) -> None:
        return None
