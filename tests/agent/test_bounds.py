"""What a gateway that is broken, or somebody else's, can make an agent keep."""

from typing import Any

import pytest
from tests.agent.fakes import T0, Agent, FakeClock, S, asset, inline, order
from tests.counters import value_of

from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent import metrics
from derops_agent.asset import orders as orders_module
from derops_agent.asset.inbox import (
    EVENT_BYTES,
    MAX_HEARD_BYTES,
    Acknowledged,
    Change,
    Settled,
    Snapshot,
)
from derops_agent.asset.orders import MAX_ORDER_BYTES
from derops_agent.link import stream as session_module
from derops_agent.link.reasons import EndReason
from derops_agent.link.stream import Stream


async def hear(agent: Agent, *events: Any) -> None:
    """Take events as a gateway brings them while the ledger takes nothing."""
    for event in events:
        agent.controller.take(event)
    await agent.controller.turn()


def snapshot(counter: int, *orders: Any) -> Snapshot:
    revision = agent_pb2.Revision(operator_start_ms=1, counter=counter)
    return Snapshot(revision=revision, asset=asset(), dispatches=list(orders))


async def test_of_many_snapshots_only_the_newest_is_kept_for_a_full_disk(agent: Agent) -> None:
    agent.refuse_writes(refused=True)
    for counter in range(100, 200):
        await hear(agent, snapshot(counter, order("d-old")), Change(part=order("d-change")))
    await hear(agent, snapshot(200, order("d-new")))

    assert len(agent.controller.inbox.unstored) == 1
    agent.refuse_writes(refused=False)
    await agent.controller.turn()
    assert {report.dispatch_uid for report in agent.reports} == {"d-new"}
    assert agent.ledger.revision.counter == 200


async def test_of_many_changes_only_the_newest_of_each_is_kept(agent: Agent) -> None:
    agent.refuse_writes(refused=True)
    for number in range(1, 101):
        await hear(
            agent,
            Change(part=order("d1", start_us=T0 + number * S)),
            Change(part=asset(limit_max_injection_watts=5000 + number)),
            Settled(uid="d2"),
            Change(part=order("d2")),
            Acknowledged(sequence=number),
        )

    assert len(agent.controller.inbox.unstored) == 3
    agent.refuse_writes(refused=False)
    await agent.controller.turn()
    assert agent.report("d1").planned_start_us == T0 + 100 * S
    assert agent.outcome("d2") == ("Acked", "Accepted")
    stored = agent.ledger.asset()
    assert stored is not None
    assert stored.limit_max_injection_watts == 5100


async def test_a_cancel_counts_though_the_order_comes_again_before_it_is_stored(
    agent: Agent,
) -> None:
    await agent.give(order())
    agent.refuse_writes(refused=True)
    await hear(agent, Change(part=order(cancelled=True, cancel_reason="CancelledBeforeStart")))
    await hear(agent, Change(part=order()))

    agent.refuse_writes(refused=False)
    await agent.controller.turn()
    assert agent.report().phase == "Cancelled"


async def test_what_has_no_room_ends_the_stream_and_a_snapshot_makes_up_for_it(
    agent: Agent,
) -> None:
    overruns: list[None] = []
    agent.outlet.note_overrun = lambda: overruns.append(None)
    agent.refuse_writes(refused=True)
    count = MAX_HEARD_BYTES // EVENT_BYTES
    for number in range(count):
        agent.controller.take(Settled(uid=f"no-dispatch-{number}"))
    assert not overruns

    agent.controller.take(Change(part=order()))
    assert overruns
    agent.refuse_writes(refused=False)
    await agent.controller.turn()
    await agent.snapshot(order())
    assert agent.outcome() == ("Acked", "Accepted")


async def test_orders_without_end_are_not_taken_and_those_that_run_go_on(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(orders_module, "MAX_ORDERS", 10)
    before = value_of(metrics.ORDERS_NOT_TAKEN)
    await agent.give(*(order(f"d{number}", start_us=T0 + 900 * S) for number in range(100)))

    assert len(agent.controller.journal) == 10
    assert value_of(metrics.ORDERS_NOT_TAKEN) == before + 90
    await agent.give(order("d1", cancelled=True, cancel_reason="CancelledBeforeStart"))
    assert agent.outcome("d1")[0] == "Cancelled"
    await agent.give(*(Settled(uid=f"d{number}") for number in range(10)))
    await agent.acknowledge_all()
    await agent.wait(30, step=1)
    assert agent.ledger.tombstones == 10
    await agent.give(order("new"))
    assert "new" not in agent.controller.journal, "what was executed is remembered first"


async def test_an_order_that_is_too_great_is_not_taken(agent: Agent) -> None:
    await agent.give(order("x" * MAX_ORDER_BYTES), order("d1"))

    assert list(agent.controller.journal) == ["d1"]


@pytest.fixture
def session(agent: Agent) -> Stream:
    channel: Any = None
    outbox: Any = None
    hello = agent_pb2.Hello(first_sequence=1)
    return Stream(channel, hello, agent.controller, outbox, FakeClock(), inline)


async def test_a_gateway_that_does_not_read_has_the_newest_of_each_wait(session: Stream) -> None:
    for sequence in range(1, 1001):
        for uid in ("d1", "hello"):
            session.report(dispatch_pb2.DispatchReport(dispatch_uid=uid, sequence=sequence))
        session._send(agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(agent_sent_us=sequence)))
    session.close(EndReason.SHUTDOWN)

    kinds = [message.WhichOneof("kind") for message in session._urgent.values()]
    assert kinds == ["hello", "report", "report", "heartbeat", "bye"]
    assert {m.report.sequence for m in session._urgent.values() if m.HasField("report")} == {1000}


async def test_a_snapshot_without_end_is_given_up(
    session: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "MAX_SNAPSHOT_BYTES", 100 * EVENT_BYTES)
    session._on_sync_begin(agent_pb2.SyncBegin(revision=agent_pb2.Revision(operator_start_ms=9)))
    for number in range(101):
        session._receive(order(f"d{number}"), agent_pb2.Revision())

    assert session._snapshot is None
    assert session._why.reason == "BadSnapshot"


def test_reasons_that_others_say_make_no_metric_without_end() -> None:
    for number in range(1000):
        metrics.count_end(f"Reason{number}")
        metrics.count_transition("Cancelled", f"Reason{number}")

    ends = {sample.labels["reason"] for sample in next(iter(metrics.CONNECTIONS.collect())).samples}
    steps = {
        sample.labels["reason"] for sample in next(iter(metrics.TRANSITIONS.collect())).samples
    }
    assert len(ends) <= 51
    assert "Other" in ends
    assert not any(reason.startswith("Reason") for reason in steps)
