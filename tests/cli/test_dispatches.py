"""Where a dispatch was stopped."""

from datetime import timedelta
from typing import Any

import pytest
from tests.cli.seeing import CONNECTED, FLOWING, NOW, OFFLINE, PLACE, asset, condition, dispatch

from derops.lifecycle import Phase, Reason
from derops.resources.derassets import DERAsset
from derops.transitions import TRANSITIONS
from derops_cli.diagnosis import Verdict
from derops_cli.dispatches import AS_ORDERED, STOP_OF, DispatchDiagnosis, diagnose_dispatch
from derops_cli.evidence import Missing

ENDS = [
    (each.end, reason)
    for each in TRANSITIONS
    if each.end.terminal
    for reason in sorted(each.reasons)  # a set: workers would collect it each in its own order
]


def judge(
    phase: str,
    reason: str,
    *conditions: dict[str, Any],
    seen: DERAsset | Missing | None = None,
    **otherwise: Any,
) -> DispatchDiagnosis:
    order = dispatch(phase, reason, *conditions, **otherwise)
    return diagnose_dispatch(order, seen or asset(FLOWING, CONNECTED), NOW, PLACE)


def test_each_reason_has_a_place_where_it_stops() -> None:
    assert set(STOP_OF) == set(Reason)


@pytest.mark.parametrize(("phase", "reason"), ENDS)
def test_each_end_is_as_ordered_or_says_where_it_stopped(phase: Phase, reason: Reason) -> None:
    found = judge(phase, reason)

    if phase is Phase.COMPLETE or reason in AS_ORDERED:
        assert (found.verdict, found.stop, found.causes) == (Verdict.FLOWS, "", ())
    else:
        assert (found.verdict, found.stop) == (Verdict.BROKEN, STOP_OF[reason])
        assert found.why == f"what {reason} says"
        assert all("evening-peak" in each.command or "battery-7" in each.command
                   or "{" not in each.command for each in found.causes)  # fmt: skip
        assert found.runbook


@pytest.mark.parametrize("phase", ["Complete", "Cancelled", "Failed"])
def test_a_device_that_was_not_reverted_is_what_is_wrong(phase: str) -> None:
    held = condition("Reverted", "False", "RevertFailed", "it holds 5000 W")

    found = judge(phase, "WindowEnded", held)

    assert (found.verdict, found.stop) == (Verdict.BROKEN, "Device")
    assert "it holds 5000 W" in found.why


LATE = {
    "not looked at": (("Submitted", "Validated"), {}, "Stream"),
    "sent": (("Sent", "DeliveredToSession"), {}, "Agent"),
    "acked": (
        ("Acked", "Accepted", condition("Applied", "False", "WaitingForDevice", "it is silent")),
        {}, "Device",
    ),
    "active": (("Active", "Applied"), {}, "Stream"),
    "no power": (
        ("Active", "Applied", condition("Verified", "False", "EffectNotObserved", "0 W")),
        {"durationSeconds": 7200}, "Device",
    ),
    "no asset": (("Submitted", "AssetNotFound"), {}, "Order"),
}  # fmt: skip


@pytest.mark.parametrize(("said", "otherwise", "stop"), LATE.values(), ids=LATE)
def test_what_is_late_says_whom_it_waits_for(
    said: tuple[Any, ...], otherwise: dict[str, Any], stop: str
) -> None:
    found = judge(*said, **otherwise)

    assert (found.verdict, found.stop) == (Verdict.BROKEN, stop)


def test_the_stream_of_its_asset_is_what_an_undelivered_one_waits_for() -> None:
    found = judge("Submitted", "Validated", seen=asset(OFFLINE), startDeadlineSeconds=30)

    assert (found.verdict, found.stop) == (Verdict.BROKEN, "Stream")
    assert "until 2026-12-01T02:00:30Z" in found.why


@pytest.mark.parametrize(
    ("phase", "start_seconds"), [("Acked", 600), ("Active", -60), ("Acked", -10)]
)
def test_what_is_in_time_flows(phase: str, start_seconds: int) -> None:
    start = (NOW + timedelta(seconds=start_seconds)).isoformat()

    assert judge(phase, "Accepted", startTime=start).verdict is Verdict.FLOWS


def test_an_asset_that_may_not_be_seen_is_missing() -> None:
    denied = Missing("DERAsset battery-7", "you may not get it")

    assert judge("Failed", "DeviceOffline", seen=denied).missing == (denied,)
