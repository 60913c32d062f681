"""Desired state to the stream, and the proof of what was never written."""

import asyncio
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs
from tests.headend.gateway.rig import Operator, Rig
from tests.pki import Leaf

from derops.wire.v1 import control_pb2


def kinds(messages: list[object]) -> list[str]:
    return [message.WhichOneof("kind") for message in messages]  # type: ignore[attr-defined]


async def test_the_snapshot_comes_whole_and_in_order(rig: Rig, leaf: Leaf) -> None:
    asset = rig.asset("battery", leaf)
    dispatches = [rig.dispatch("d1"), rig.dispatch("d2"), rig.dispatch("x", asset="other")]
    operator = rig.operator()
    await operator.snapshot([asset, rig.asset("other")], dispatches, start_ms=77)

    messages = await rig.agent(leaf).connect()

    assert kinds(messages) == [  # type: ignore[arg-type]
        "welcome",
        "sync_begin",
        "asset",
        "dispatch",
        "dispatch",
        "sync_end",
        "credit",
    ]
    assert messages[0].welcome.replica == "gateway-0"
    revision = messages[1].sync_begin.revision
    assert (revision.operator_start_ms, revision.counter) == (77, operator.version)
    assert messages[5].sync_end.revision == revision
    assert messages[5].sync_end.count == 2
    assert {messages[3].dispatch.uid, messages[4].dispatch.uid} == {"d1", "d2"}


async def test_an_agent_never_sees_the_ledger(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    agent = rig.agent(leaf)
    messages = await agent.connect()
    await operator.say(asset=rig.asset("battery", leaf, type="Battery"))

    assert not messages[2].asset.HasField("identity")
    changed = await agent.read_until("asset")
    assert (changed.type, changed.HasField("identity")) == ("Battery", False)


async def test_no_agent_is_served_before_a_complete_snapshot(rig: Rig, leaf: Leaf) -> None:
    assert rig.readiness.report()[0] is False
    operator = rig.operator()
    await operator.say(snapshot_begin=control_pb2.SnapshotBegin(operator_start_ms=1))
    await operator.say(asset=rig.asset("battery", leaf))

    code, details = await rig.agent(leaf).refusal()

    assert (code, details.split(":")[0]) == (grpc.StatusCode.UNAVAILABLE, "NotReady")


async def test_a_snapshot_that_lacks_something_changes_nothing(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))
    agent = rig.agent(leaf)
    broken = rig.operator()
    await broken.say(snapshot_begin=control_pb2.SnapshotBegin(operator_start_ms=2000))
    await broken.say(asset=rig.asset("battery", leaf))
    await broken.say(snapshot_end=control_pb2.SnapshotEnd(assets=1, dispatches=1))

    with pytest.raises(grpc.aio.AioRpcError, match="SnapshotIncomplete"):
        await broken.accepted(3)

    messages = await agent.connect()
    assert messages[1].sync_begin.revision.operator_start_ms == 1000
    assert messages[3].dispatch.uid == "d1"


async def test_a_new_snapshot_is_told_to_live_streams_as_changes(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    asset = rig.asset("battery", leaf)
    await operator.snapshot([asset], [rig.dispatch("stays"), rig.dispatch("goes")])
    agent = rig.agent(leaf)
    await agent.connect()

    await operator.snapshot([asset], [rig.dispatch("stays"), rig.dispatch("comes")])

    assert (await agent.read()).dispatch.uid == "comes"
    assert (await agent.read()).settled.dispatch_uid == "goes"


async def test_an_older_operator_does_not_take_the_state_back(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="StaleOperator"):
        await rig.operator().snapshot([], start_ms=999)

    await rig.agent(leaf).connect()


async def test_a_new_era_is_told_to_live_streams_though_nothing_else_changes(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()

    await operator.snapshot([rig.asset("battery", leaf)], era=7)

    message = await agent.read()
    assert message.WhichOneof("kind") == "asset"
    assert (message.revision.era, message.revision.operator_start_ms) == (7, 1000)


async def test_the_newest_operator_stream_wins(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    newer = rig.operator()
    hello = await newer.read_until("hello")
    await newer.say(snapshot_begin=control_pb2.SnapshotBegin(operator_start_ms=1000))

    assert hello.replica == "gateway-0"
    with pytest.raises(grpc.aio.AioRpcError, match="Superseded"):
        await operator.accepted(10**6)


async def test_a_delivery_is_held_then_written(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    await operator.say(dispatch=rig.dispatch("d1"))
    held = await operator.delivery("d1")

    await rig.agent(leaf).connect()
    written = await operator.delivery("d1")

    assert held.written_us == 0
    assert written.written_us > 0
    assert written.ledger_id == "ledger-1"


async def test_the_way_of_a_dispatch_through_the_gateway_is_told_once(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    dispatch = rig.dispatch("d1", name="peak", namespace="ns", request_id="7f0e6a5c")
    with capture_logs() as lines:
        for known_phase in ("Submitted", "Acked"):  # it is written again with each phase
            dispatch.known_phase = known_phase
            await operator.say(dispatch=dispatch)
            assert (await agent.read_until("dispatch")).uid == "d1"
        for sequence, phase in enumerate(("Acked", "Acked", "Active"), start=1):
            await agent.report("d1", phase, sequence)
            await agent.read_until("report_ack")
        dispatch.cancelled = True
        await operator.say(dispatch=dispatch)
        await agent.read_until("dispatch")

    told = [line for line in lines if line.get("dispatch_uid") == "d1"]
    assert [line["event"] for line in told] == [
        "dispatch.stored",
        "dispatch.written",
        "report.taken",
        "report.taken",
        "dispatch.written",
    ]
    assert [line["phase"] for line in told if "phase" in line] == ["Acked", "Active"]
    assert [line["cancelled"] for line in told if "cancelled" in line] == [False, True]
    assert {line["request_id"] for line in told} == {"7f0e6a5c"}
    assert {line["dispatch"] for line in told} == {"peak"}


async def test_a_report_that_is_durable_once_its_dispatch_is_settled_is_told_as_of_it(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    """The operator hears a report before the log has it."""
    agent = rig.agent(leaf)
    await agent.connect()
    await operator.say(dispatch=rig.dispatch("d1", name="peak", request_id="7f0e6a5c"))
    await agent.read_until("dispatch")
    rig.log.open.clear()
    with capture_logs() as lines:
        await agent.report("d1", "Complete")
        await operator.read_until("report")
        await operator.accepted(await operator.say(dispatch_removed="d1"))
        rig.log.open.set()
        await agent.read_until("report_ack")

    (told,) = [line for line in lines if line["event"] == "report.taken"]
    assert (told["dispatch"], told["request_id"]) == ("peak", "7f0e6a5c")


async def test_cancelled_and_never_written_is_never_written(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    await operator.say(dispatch=rig.dispatch("d1"))
    await operator.say(dispatch=rig.dispatch("d1", generation=2, cancelled=True))
    held = await operator.delivery("d1", generation=2)
    agent = rig.agent(leaf)

    messages = await agent.connect()
    await operator.say(dispatch=rig.dispatch("d1", generation=3, cancelled=True))
    still_held = await operator.delivery("d1", generation=3)
    await operator.say(dispatch=rig.dispatch("d2"))

    assert held.written_us == still_held.written_us == 0
    assert "dispatch" not in kinds(messages)  # type: ignore[arg-type]
    assert messages[3].sync_end.count == 0
    assert (await agent.read_until("dispatch")).uid == "d2"


async def test_a_cancel_reaches_who_may_have_the_order(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    await operator.accepted(await operator.say(dispatch=rig.dispatch("here")))
    agent = rig.agent(leaf)
    await agent.connect()

    await operator.say(dispatch=rig.dispatch("here", generation=2, cancelled=True))
    assert (await agent.read_until("dispatch")).cancelled
    elsewhere = rig.dispatch("elsewhere", generation=2, cancelled=True, known_phase="Acked")
    await operator.say(dispatch=elsewhere)
    assert (await agent.read_until("dispatch")).uid == "elsewhere"


async def test_an_agent_that_lost_its_disk_hears_that_the_old_one_was_given_a_dispatch(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))
    agent = rig.agent(leaf)
    (first,) = [m.dispatch for m in await agent.connect() if m.HasField("dispatch")]
    await agent.close()
    await rig.log.connection("Disconnected")

    emptied = rig.agent(leaf)
    hello = emptied.hello(2)
    hello.hello.ledger_id = "ledger-2"
    await emptied.send(hello)
    again = await emptied.read_until("dispatch")
    await operator.say(dispatch=rig.dispatch("d1", generation=2, cancelled=True))
    cancelled = await emptied.read_until("dispatch")
    await operator.say(dispatch=rig.dispatch("d2"))
    other = await emptied.read_until("dispatch")

    assert first.other_ledger_id == other.other_ledger_id == ""
    assert again.other_ledger_id == cancelled.other_ledger_id == "ledger-1"


async def test_a_cancel_that_meets_a_write_under_way_is_not_answered_with_never(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))
    assert rig.gateway is not None
    exchange = rig.gateway.exchange
    record, begun, go = exchange.store.record, asyncio.Event(), asyncio.Event()

    async def slow(writes: object) -> None:
        begun.set()
        await go.wait()
        await record(writes)  # type: ignore[arg-type]

    exchange.deliveries.writes.write = slow
    agent = rig.agent(leaf)
    await agent.send(agent.hello())
    await begun.wait()

    await operator.say(dispatch=rig.dispatch("d1", generation=2, cancelled=True))
    delivery = await operator.delivery("d1", generation=2)
    go.set()

    assert delivery.written_us > 0
    assert not (await agent.read_until("dispatch")).cancelled
    assert (await agent.read_until("dispatch")).cancelled


async def test_no_stream_writes_before_the_note_of_another_is_on_the_disk(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))
    assert rig.gateway is not None
    exchange = rig.gateway.exchange
    record, begun, go = exchange.store.record, asyncio.Event(), asyncio.Event()

    async def slow(writes: object) -> None:
        begun.set()
        await go.wait()
        await record(writes)  # type: ignore[arg-type]

    exchange.deliveries.writes.write = slow
    first, second = rig.agent(leaf), rig.agent(leaf)
    await first.send(first.hello(epoch=1))
    await begun.wait()
    await second.send(second.hello(epoch=2))
    await second.read_until("welcome")
    claim = asyncio.create_task(exchange.deliveries.claim(["d1"], "ledger-2"))
    await asyncio.sleep(0)

    assert not claim.done()
    go.set()
    await claim
    _, on_disk = exchange.store.load() or (None, {})
    assert on_disk["d1"].ledger_id == "ledger-1"
    assert (await second.read_until("dispatch")).uid == "d1"


async def test_one_commit_has_a_dispatch_and_its_write_to_a_live_stream(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    assert rig.gateway is not None
    exchange = rig.gateway.exchange

    async def fail(writes: object) -> None:
        raise AssertionError(f"a second commit: {writes}")

    exchange.deliveries.writes.write = fail
    await operator.say(dispatch=rig.dispatch("d1"))
    sent = await agent.read_until("dispatch")
    _, on_disk = exchange.store.load() or (None, {})
    told = await operator.delivery("d1")
    while not told.written_us:
        told = await operator.delivery("d1")

    assert sent.uid == "d1"
    assert on_disk["d1"].written_us == told.written_us > 0
    assert on_disk["d1"].ledger_id == told.ledger_id == "ledger-1"


async def test_a_write_that_was_noted_and_did_not_happen_is_not_told(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    assert rig.gateway is not None
    exchange = rig.gateway.exchange
    apply, begun, go = exchange.store.apply, asyncio.Event(), asyncio.Event()

    async def slow(*changes: Any) -> None:
        await apply(*changes)
        begun.set()
        await go.wait()

    exchange.store.apply = slow  # type: ignore[method-assign, assignment]
    await operator.say(dispatch=rig.dispatch("d1"))
    await begun.wait()
    await agent.close()
    await rig.log.connection("Disconnected")
    go.set()
    held = await operator.delivery("d1")
    await operator.say(dispatch=rig.dispatch("d1", generation=2, cancelled=True))
    cancelled = await operator.delivery("d1", generation=2)
    other = rig.agent(leaf)
    messages = await other.connect(epoch=2)

    assert held.written_us == cancelled.written_us == 0
    assert "dispatch" not in kinds(messages)  # type: ignore[arg-type]


async def test_a_batch_of_the_operator_is_taken_like_its_messages(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    message = control_pb2.OperatorMessage
    first = message(version=operator.version + 1, dispatch=rig.dispatch("d1"))
    second = message(version=operator.version + 2, dispatch=rig.dispatch("d2"))
    batch = control_pb2.OperatorBatch(messages=[first, second])
    await operator.send(message(batch=batch))

    given = [(await agent.read_until("dispatch")).uid for _ in range(2)]
    await operator.accepted(second.version)

    assert given == ["d1", "d2"]


async def test_what_waits_for_an_operator_that_takes_batches_comes_in_few_messages(
    rig: Rig,
) -> None:
    operator, assets = rig.operator(), [rig.asset(f"a{number}") for number in range(149)]
    begin = control_pb2.SnapshotBegin(operator_start_ms=1000, takes_batches=True)
    await operator.say(snapshot_begin=begin)
    for asset in assets:
        await operator.say(asset=asset)
    end = control_pb2.SnapshotEnd(assets=len(assets))
    version = await operator.say(snapshot_end=end)

    assert (await operator.read()).HasField("hello")
    batches = [(await operator.read()).batch.messages for _ in range(3)]
    accepted, *sessions = [message for batch in batches for message in batch]
    last = await operator.read()  # what is alone is no batch

    assert [len(batch) for batch in batches] == [50, 50, 50]
    assert accepted.accepted_version == version
    assert last.HasField("headend")
    assert [each.session.asset_uid for each in sessions] == [asset.id.uid for asset in assets]


async def test_a_restart_serves_the_last_state_and_remembers_deliveries(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    asset = rig.asset("battery", leaf)
    await operator.accepted(await operator.say(dispatch=rig.dispatch("written")))
    await rig.agent(leaf).connect()
    before = await operator.delivery("written")
    while not before.written_us:
        before = await operator.delivery("written")
    other = rig.asset("other")
    await operator.say(asset=other)
    version = await operator.say(dispatch=rig.dispatch("never", asset="other"))
    await operator.accepted(version)
    await rig.stop()

    await rig.start()
    messages = await rig.agent(leaf).connect(epoch=2)
    again = rig.operator()
    since_us = (await again.read_until("hello")).state_since_us
    dispatches = [rig.dispatch("written"), rig.dispatch("never", asset="other")]
    again.version = version
    await again.snapshot([asset, other], dispatches)
    after = [await again.delivery("written"), await again.delivery("never")]

    assert rig.readiness.report()[0] is True
    assert messages[1].sync_begin.revision.counter == version
    assert messages[3].dispatch.uid == "written"
    assert 0 < since_us < before.written_us
    assert [delivery.written_us for delivery in after] == [before.written_us, 0]


async def test_an_agent_is_told_which_state_a_change_is_from(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()

    changes: dict[str, Any] = {
        "dispatch": rig.dispatch("d1"),
        "asset": rig.asset("battery", leaf),
    }
    for kind, change in changes.items():
        version = await operator.say(**{kind: change})
        while (message := await agent.read()).WhichOneof("kind") != kind:
            pass
        assert message.revision.counter == version
