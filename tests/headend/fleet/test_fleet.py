"""Desired state, sessions and the order of an outbox, as pure rules."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_headend.fleet.desired import (
    NEVER,
    BadSyncError,
    DesiredState,
    Revision,
    Snapshot,
    SnapshotBuilder,
    Written,
)
from derops_headend.fleet.sessions import (
    CloneSuspectedError,
    EpochTooLowError,
    Session,
    SessionTable,
)
from derops_headend.fleet.telemetry import BatchVerdict, OutboxOrder, window_of

LEDGER = dispatch_pb2.IdentityLedger()
NOW_US = 1_000_000


def asset(uid: str, name: str = "battery") -> dispatch_pb2.Asset:
    return dispatch_pb2.Asset(id=dispatch_pb2.AssetId(uid=uid, namespace="pilot", name=name))


def dispatch(uid: str, **facts: object) -> dispatch_pb2.Dispatch:
    return dispatch_pb2.Dispatch(**({"uid": uid, "asset_uid": "a"} | facts))  # type: ignore[arg-type]


def state(*dispatches: dispatch_pb2.Dispatch) -> DesiredState:
    desired = DesiredState()
    revision = Revision(operator_start_ms=1, version=1)
    desired.replace(Snapshot(revision=revision, assets=(asset("a"),), dispatches=dispatches))
    return desired


def session(epoch: int, instance: str = "i") -> Session:
    return Session(
        asset_uid="a",
        epoch=epoch,
        instance_id=instance,
        serial_number="1",
        opened_us=epoch,
        since_us=0,
        capability=agent_pb2.Capability(),
    )


def test_a_recreated_asset_keeps_its_name_when_the_old_uid_goes() -> None:
    desired = state()
    desired.apply(control_pb2.OperatorMessage(version=2, asset=asset("b")))

    desired.apply(control_pb2.OperatorMessage(version=3, asset_removed="a"))

    named = desired.assets()
    assert [each.id.uid for each in named] == ["b"]
    assert desired.revision == Revision(operator_start_ms=1, version=3)


def test_a_snapshot_with_other_counts_is_refused() -> None:
    builder = SnapshotBuilder(1)
    builder.add(control_pb2.OperatorMessage(asset=asset("a")))
    end = control_pb2.SnapshotEnd(assets=2, dispatches=0)

    with pytest.raises(BadSyncError, match="1 of 2 assets"):
        builder.finish(control_pb2.OperatorMessage(version=1, snapshot_end=end))


def test_deliveries_survive_a_snapshot_with_their_dispatch_and_no_longer() -> None:
    desired = state(dispatch("stays"), dispatch("goes"))
    for uid in ("stays", "goes"):
        desired.mark_written(uid, 5, "ledger")

    later = Revision(operator_start_ms=1, version=9)
    changes = desired.replace(
        Snapshot(revision=later, assets=(asset("a"),), dispatches=(dispatch("stays"),))
    )

    assert [each.uid for each in changes.settled] == ["goes"]
    assert changes.dispatches == []
    assert desired.written("stays").written_us == 5
    assert desired.written("goes").written_us == 0


def test_the_first_write_and_its_ledger_stand() -> None:
    desired = state(dispatch("d"))

    assert desired.mark_written("d", 5, "first") is not None
    assert desired.mark_written("d", 6, "second") is None
    assert (desired.written("d").written_us, desired.written("d").ledger_id) == (5, "first")


def test_a_write_that_was_noted_ahead_counts_once_it_happens() -> None:
    desired = state(dispatch("d"))
    desired.note_ahead("d", Written(written_us=5, ledger_id="ledger"))
    before = desired.written("d")

    to_store = desired.mark_written("d", 6, "ledger")

    assert before == NEVER
    assert to_store is None, "the disk has it"
    assert desired.written("d") == Written(written_us=5, ledger_id="ledger")


def test_a_note_ahead_proves_nothing_of_another_ledger() -> None:
    desired = state(dispatch("d"))
    desired.note_ahead("d", Written(written_us=5, ledger_id="gone"))

    to_store = desired.mark_written("d", 6, "ledger")

    assert to_store == desired.written("d") == Written(written_us=6, ledger_id="ledger")


def test_a_note_ahead_comes_too_late_for_a_write_that_happened() -> None:
    desired = state(dispatch("d"))
    desired.mark_written("d", 5, "first")

    desired.note_ahead("d", Written(written_us=4, ledger_id="second"))

    assert desired.written("d").ledger_id == "first"
    assert not desired.may_be_first_written(dispatch("d"))


def test_what_was_noted_ahead_is_withdrawn_all_the_same() -> None:
    desired = state(dispatch("d"))
    desired.note_ahead("d", Written(written_us=5, ledger_id="ledger"))

    cancel = control_pb2.OperatorMessage(version=2, dispatch=dispatch("d", cancelled=True))
    desired.apply(cancel)

    assert not desired.may_be_written("d")
    assert not desired.may_be_first_written(cancel.dispatch)


@pytest.mark.parametrize("way", ["removed", "replaced"])
def test_a_note_ahead_goes_with_its_dispatch(way: str) -> None:
    desired = state(dispatch("d"))
    desired.note_ahead("d", Written(written_us=5, ledger_id="ledger"))

    if way == "removed":
        desired.apply(control_pb2.OperatorMessage(version=2, dispatch_removed="d"))
    else:
        revision = Revision(operator_start_ms=1, version=2)
        desired.replace(Snapshot(revision=revision, assets=(asset("a"),), dispatches=()))
    desired.apply(control_pb2.OperatorMessage(version=3, dispatch=dispatch("d")))

    assert desired.mark_written("d", 6, "ledger") == Written(written_us=6, ledger_id="ledger")


@pytest.mark.parametrize(
    ("facts", "written", "expected"),
    [
        ({}, False, True),
        ({"cancelled": True}, False, False),
        ({"cancelled": True, "known_phase": "Submitted"}, False, False),
        ({"cancelled": True}, True, True),
        ({"cancelled": True, "known_phase": "Sent"}, False, True),
    ],
)
def test_what_may_be_written(facts: dict[str, object], written: bool, expected: bool) -> None:
    desired = state(dispatch("d", **facts))
    if written:
        desired.mark_written("d", 5, "ledger")

    assert desired.may_be_written("d") is expected


@given(epochs=st.lists(st.integers(1, 9), max_size=12))
def test_the_live_epoch_only_rises(epochs: list[int]) -> None:
    table, highest = SessionTable(), 0
    for epoch in epochs:
        if epoch <= highest:
            with pytest.raises(EpochTooLowError) as refused:
                table.open(session(epoch), LEDGER, NOW_US)
            assert refused.value.highest == highest
        else:
            table.open(session(epoch), LEDGER, NOW_US)
            highest = epoch
        live = table.last("a")
        assert live is not None
        assert live.epoch == highest


@given(instances=st.lists(st.sampled_from("abc"), max_size=12))
def test_an_instance_that_was_taken_over_never_returns(instances: list[str]) -> None:
    table, seen = SessionTable(), list[str]()
    for epoch, instance in enumerate(instances, start=1):
        if instance in seen[:-1]:
            with pytest.raises(CloneSuspectedError):
                table.open(session(epoch, instance), LEDGER, NOW_US)
            return
        table.open(session(epoch, instance), LEDGER, NOW_US)
        if instance not in seen:
            seen.append(instance)


def test_the_end_of_an_old_stream_does_not_end_the_new() -> None:
    table, old = SessionTable(), session(1)
    ledger = dispatch_pb2.IdentityLedger()
    ledger.current.serial_number, ledger.next.serial_number = "1", "2"
    table.open(old, ledger, NOW_US)
    table.open(replace(session(1), serial_number="2"), ledger, NOW_US)  # of a newer key

    assert table.close(old, "Superseded", 5) is None
    live = table.last("a")
    assert live is not None
    assert live.connected


@given(
    base=st.integers(1, 10**9),
    steps=st.lists(st.tuples(st.integers(0, 40), st.booleans(), st.integers(0, 16)), max_size=60),
)
def test_what_is_acknowledged_was_stored_without_a_hole(
    base: int, steps: list[tuple[int, bool, int]]
) -> None:
    order, stored = OutboxOrder("o", base), list[int]()
    promised = order.credit(16).send_through
    for offset, durable, window in steps:
        verdict = order.take(base + offset, "o", gap=False)
        if verdict is BatchVerdict.STORE:
            assert base + offset <= promised
            stored.append(base + offset)
        if durable and stored:
            order.stored(stored[-1])
            credit = order.credit(window)
            assert credit.acknowledged_through == stored[-1]
            assert credit.send_through == max(promised, stored[-1] + window)
            promised = credit.send_through
    assert stored == list(range(base, base + len(stored)))


def test_an_outbox_is_calm_where_all_that_came_is_durable_and_more_may_come() -> None:
    order = OutboxOrder("o", 1)
    assert not order.is_calm, "nothing is promised yet"
    order.credit(2)
    assert order.is_calm
    order.take(1, "o", gap=False)
    assert not order.is_calm, "it is on its way into the log"
    order.stored(1)
    assert order.is_calm
    order.take(2, "o", gap=False)
    order.stored(2)
    assert not order.is_calm, "the credit is used up"


@pytest.mark.parametrize(
    ("fill", "window"),
    [(0.0, 16), (0.8, 16), (0.875, 8), (0.9499, 1), (0.95, 0), (1.2, 0)],
)
def test_the_window_shrinks_from_80_percent_and_closes_at_95(fill: float, window: int) -> None:
    assert window_of(fill) == window
