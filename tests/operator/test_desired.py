"""The desired state: versions, snapshots, and cancels that stay."""

from tests.operator.making import asset, dispatch

from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_operator.gateways import desired, wire
from derops_operator.gateways.desired import Awaiting, Desired, Subscription
from derops_operator.reconciling.actions import Submit

ASSET = wire.asset_message(asset(), {})


def order(**fields: object) -> dispatch_pb2.Dispatch:
    return wire.dispatch_message(dispatch(), "uid-battery", Submit(**fields))  # type: ignore[arg-type]


async def read(subscription: Subscription, count: int) -> list[control_pb2.OperatorMessage]:
    return [message for _ in range(count) for message in await subscription.get()]


async def test_a_subscriber_gets_a_counted_snapshot_and_then_each_change() -> None:
    subject = Desired(operator_start_ms=7)
    subject.put_asset(ASSET)
    subject.put_dispatch(order())

    subscription = subject.subscribe()
    snapshot = await read(subscription, 4)
    kinds = [message.WhichOneof("kind") for message in snapshot]
    assert kinds == ["snapshot_begin", "asset", "dispatch", "snapshot_end"]
    assert snapshot[0].snapshot_begin.operator_start_ms == 7
    assert (snapshot[-1].snapshot_end.assets, snapshot[-1].snapshot_end.dispatches) == (1, 1)
    assert {message.version for message in snapshot} == {3}

    subject.put_dispatch(order(cancelled=True))
    subject.remove_dispatch("uid-peak")
    subject.remove_asset("uid-battery")
    changes = await read(subscription, 3)
    assert [message.version for message in changes] == [4, 5, 6]
    assert changes[0].dispatch.cancelled


async def test_what_is_equal_changes_nothing() -> None:
    subject = Desired(operator_start_ms=7)
    subject.put_asset(ASSET)
    subject.put_dispatch(order())
    version = subject.version

    subject.put_asset(wire.asset_message(asset(), {}))
    subject.put_dispatch(order())
    subject.remove_asset("uid-of-nothing")
    subject.remove_dispatch("uid-of-nothing")

    assert subject.version == version


async def test_a_cancel_never_comes_back() -> None:
    subject = Desired(operator_start_ms=7)
    subject.put_dispatch(order(cancelled=True, cancel_reason="AssetOutOfService"))
    version = subject.version

    subject.put_dispatch(order())
    subject.put_dispatch(order(cancelled=True))

    assert subject.version == version


async def test_what_is_unread_is_counted_and_gives_way_to_what_is_read() -> None:
    subject = Desired(operator_start_ms=7)
    for uid in ("uid-battery", "uid-peak", "uid-other"):
        subject.put_unread(control_pb2.Unread(uid=uid, namespace="pilot", asset_name="battery"))
    first = subject.version - 1

    subscription = subject.subscribe()
    snapshot = await read(subscription, 5)
    assert [each.unread.uid for each in snapshot[1:4]] == ["uid-battery", "uid-peak", "uid-other"]
    assert snapshot[-1].snapshot_end.unread == 3

    subject.put_asset(ASSET)
    subject.put_dispatch(order())
    subject.settle_unread("uid-peak")
    subject.settle_unread("uid-other")
    changes = [each.WhichOneof("kind") for each in await read(subscription, 3)]
    assert changes == ["asset", "dispatch", "dispatch_removed"]
    assert subject.dispatch_versions("uid-peak")[0] == first, "replicas may have it since"

    end = (await read(subject.subscribe(), 4))[-1].snapshot_end
    assert (end.assets, end.dispatches, end.unread) == (1, 1, 0)


async def test_what_is_held_is_not_called_unread() -> None:
    subject = Desired(operator_start_ms=7)
    subject.put_dispatch(order())
    version = subject.version

    subject.put_unread(control_pb2.Unread(uid="uid-peak"))

    assert subject.version == version


async def test_versions_say_since_when_replicas_may_know() -> None:
    subject = Desired(operator_start_ms=7)
    first, current = subject.dispatch_versions("uid-peak")
    assert current > subject.version
    assert first <= subject.version

    subject.put_dispatch(order())
    subject.put_asset(ASSET)
    subject.put_dispatch(order(cancelled=True))
    assert subject.dispatch_versions("uid-peak") == (2, 4)
    assert subject.asset_version("uid-battery", 1) == 3
    assert subject.asset_version("uid-battery", 2) is None


async def test_a_snapshot_is_what_was_held_when_it_was_asked_for() -> None:
    subject = Desired(operator_start_ms=7)
    subject.put_asset(ASSET)
    subject.put_dispatch(order())
    subscription = subject.subscribe()

    subject.remove_dispatch("uid-peak")
    subject.remove_asset("uid-battery")

    told = await read(subscription, 6)
    assert [message.WhichOneof("kind") for message in told] == [
        "snapshot_begin", "asset", "dispatch", "snapshot_end", "dispatch_removed", "asset_removed",
    ]  # fmt: skip
    assert told[1].asset == ASSET
    assert [message.version for message in told] == [3, 3, 3, 3, 4, 5]


async def test_changes_wait_behind_a_snapshot_of_any_size() -> None:
    subject = Desired(operator_start_ms=7)
    for number in range(3):
        subject.put_asset(dispatch_pb2.Asset(id=dispatch_pb2.AssetId(uid=f"uid-{number}")))
    subscription = subject.subscribe()
    subscription.put(control_pb2.OperatorMessage(asset_removed="uid-0"))

    assert len(subscription._waiting) == 1


def test_who_waits_for_a_version_is_told_once_and_not_before() -> None:
    subject = Awaiting[str]()
    subject.add("late", 9)
    subject.add("early", 2)
    subject.add("gone", 2)
    subject.discard("gone")
    subject.add("changed", 2)
    subject.add("changed", 9)

    assert list(subject.take_until(1)) == []
    assert list(subject.take_until(8)) == ["early"]
    assert list(subject.take_until(9)) == ["late", "changed"]
    assert list(subject.take_until(9)) == []


async def test_history_goes_to_one_replica_and_waits_for_one() -> None:
    subject = Desired(operator_start_ms=7)
    message = control_pb2.OperatorMessage(transition=control_pb2.HeadendTransition())
    assert not subject.tell_any(message)

    one, two = subject.subscribe(), subject.subscribe()
    assert not subject.tell_any(message)  # a replica that refuses the snapshot brings nothing on
    one.stored = True
    assert subject.tell_any(message)
    assert (await read(one, 3))[-1].HasField("transition")
    subject.unsubscribe(one)
    subject.unsubscribe(two)
    assert not subject.tell_any(message)


async def test_a_replica_that_is_too_slow_is_ended() -> None:
    subscription = Subscription(iter(()))
    change = control_pb2.OperatorMessage(dispatch=order())
    size = change.ByteSize() + desired.OVERHEAD_BYTES
    for _ in range(desired.BACKLOG_BYTES // size):
        subscription.put(change)
    assert subscription.bytes <= desired.BACKLOG_BYTES
    assert not subscription.overrun.is_set()

    subscription.put(change)

    assert await subscription.get() == []
    assert subscription.bytes == 0


def test_a_replica_that_is_too_slow_takes_no_history_with_it() -> None:
    subscription = Subscription(iter(()))
    told = control_pb2.HeadendTransition(dispatch_uid="d1")
    subscription.put(control_pb2.OperatorMessage(transition=told))
    change = control_pb2.OperatorMessage(dispatch=order())
    while not subscription.overrun.is_set():
        subscription.put(change)
    late = control_pb2.HeadendTransition(dispatch_uid="d2")
    subscription.put(control_pb2.OperatorMessage(transition=late))
    subscription.put(change)

    assert subscription.take_transitions() == [told, late]


def test_what_was_taken_has_room_again() -> None:
    subscription = Subscription(iter(()))
    for _ in range(3):
        subscription.put(control_pb2.OperatorMessage(dispatch=order()))
        subscription.take()

    assert subscription.bytes == 0


def test_who_waits_for_ever_newer_versions_costs_no_more() -> None:
    subject = Awaiting[str]()
    for version in range(100_000):
        subject.add("a", version)

    assert len(subject._heap) <= 1003
    assert list(subject.take_until(100_000)) == ["a"]


async def test_what_waits_is_taken_together_but_a_snapshot_ends_first() -> None:
    subject = Desired(operator_start_ms=7)
    subject.put_asset(ASSET)
    subscription = subject.subscribe()
    subject.put_dispatch(order())
    subject.remove_asset(ASSET.id.uid)

    subscription.most = 2

    kinds = [[each.WhichOneof("kind") for each in await subscription.get()] for _ in range(3)]
    assert kinds == [["snapshot_begin", "asset"], ["snapshot_end"], ["dispatch", "asset_removed"]]


def test_an_asset_goes_over_the_wire_whole() -> None:
    home = asset(
        fallback={"activePowerWatts": 0, "onCommsLoss": "Revert", "failsafeAfterSeconds": 300},
        telemetry={"intervalSeconds": 1},
    )
    ledger = {
        "current": {"serialNumber": "a", "publicKeySHA256": "b"},
        "previous": {
            "serialNumber": "c",
            "publicKeySHA256": "d",
            "acceptedUntil": "2027-01-15T08:00:00.500Z",
        },
        "quarantine": {"reason": "CloneSuspected"},
        "suspectedAt": "2027-01-15T08:00:00.250Z",
    }

    message = wire.asset_message(home, ledger)

    assert message.HasField("fallback_active_power_watts")
    assert message.fallback_active_power_watts == 0
    assert not message.HasField("fallback_max_load_watts")
    assert (message.limit_max_injection_watts, message.limit_max_absorption_watts) == (8000, 8000)
    assert (message.on_comms_loss, message.failsafe_after_seconds) == ("Revert", 300)
    assert message.identity.current.serial_number == "a"
    assert message.identity.previous.accepted_until_us == 1_800_000_000_500_000
    assert not message.identity.HasField("next")
    assert message.identity.quarantine == "CloneSuspected"
    assert message.identity.suspected_us == 1_800_000_000_250_000


def test_an_asset_says_how_its_effect_is_judged_only_if_it_does() -> None:
    silent = wire.asset_message(asset(), {})
    told = wire.asset_message(asset(verification={"settleSeconds": 90}), {})

    assert not silent.HasField("verification_settle_seconds")
    assert told.verification_settle_seconds == 90
    assert not told.HasField("verification_tolerance_watts")


def test_a_dispatch_without_a_start_begins_at_its_creation() -> None:
    subject = dispatch(startTime=None, setpoint={"mode": "LoadLimit", "maxLoadWatts": 700})

    message = wire.dispatch_message(subject, "uid-battery", Submit())
    assert message.asset_name == subject.asset_name

    assert message.start_us == message.created_us == subject.meta.created_us
    assert (message.setpoint.mode, message.setpoint.watts) == ("LoadLimit", 700)
    assert message.start_deadline_seconds == 50


async def test_transitions_that_a_replica_was_not_given_are_given_back_once() -> None:
    subject = Desired(operator_start_ms=7)
    subscription = subject.subscribe()
    subscription.stored = True
    transition = control_pb2.HeadendTransition(dispatch_uid="uid-peak")
    subject.tell_any(control_pb2.OperatorMessage(transition=transition))

    assert subject.unsubscribe(subscription) == [transition]
    assert subject.unsubscribe(subscription) == []
