"""What the gateway takes from an agent as a report."""

import math
from typing import Any

import pytest

from derops.lifecycle import MESSAGE_LIMIT
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_headend.fleet.reports import Circumstances, impossibility_of, problem_of

AT_US = 1_900_000_000_000_000


def report(**changes: Any) -> dispatch_pb2.DispatchReport:
    step = dispatch_pb2.Transition(phase="Complete", reason="WindowEnded", at_us=AT_US)
    facts: dict[str, Any] = {
        "dispatch_uid": "0b8a3c0e-7d0f-4a35-9d4b-9a4c2f6f3f7a",
        "phase": "Complete",
        "reason": "WindowEnded",
        "message": "m" * MESSAGE_LIMIT,
        "transitions": [step],
        "applied_us": AT_US,
        "applied_watts": -5000,
        "delivered_watt_hours": -41.5,
        "supersedes": ["u" * 36],
    }
    return dispatch_pb2.DispatchReport(**(facts | changes))


def step(**changes: Any) -> list[dispatch_pb2.Transition]:
    facts: dict[str, Any] = {"phase": "Acked", "at_us": AT_US}
    return [dispatch_pb2.Transition(**(facts | changes))]


def test_a_report_within_all_bounds_is_taken() -> None:
    assert problem_of(report()) == ""


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"phase": "Exploded"}, "'Exploded' is not one that an agent reports"),
        ({"phase": "Submitted"}, "'Submitted' is not one that an agent reports"),
        ({"reason": "r" * 65}, "reason has more than 64 characters"),
        ({"message": "m" * (MESSAGE_LIMIT + 1)}, "message 1024"),
        ({"rounding": "r" * (MESSAGE_LIMIT + 1)}, "rounding has more than 1024"),
        ({"pending_error": "p" * (MESSAGE_LIMIT + 1)}, "pending_error has more than 1024"),
        ({"evidence": "e" * 65}, "evidence has more than 64"),
        ({"superseded_by": "s" * 65}, "superseded_by has more than 64"),
        ({"supersedes": ["u"] * 257}, "supersedes has more than 256"),
        ({"supersedes": ["u" * 65]}, "supersedes has more than 256 uids of 64"),
        ({"applied_us": -1}, "applied_us -1 is not between"),
        ({"planned_end_us": 2**62}, "planned_end_us 4611686018427387904 is not between"),
        ({"applied_watts": 10**12 + 1}, "applied_watts 1000000000001 is not between"),
        ({"delivered_watt_hours": math.nan}, "delivered_watt_hours nan is not between"),
        ({"delivered_watt_hours": -math.inf}, "delivered_watt_hours -inf is not between"),
        ({"interruptions": -1}, "interruptions -1 is not between"),
        ({"transitions": step() * 65}, "65 transitions; up to 64"),
        ({"transitions": step(phase="Sent")}, "a transition: phase 'Sent'"),
        ({"transitions": step(phase="Nonsense") * 2}, "a transition: phase 'Nonsense'"),
        ({"transitions": step(at_us=2**62)}, "a transition: time 4611686018427387904 us"),
        ({"transitions": step(message="m" * 1025)}, "a transition: the reason has more than 64"),
    ],
)
def test_a_report_beyond_a_bound_is_refused_with_the_bound(
    changes: dict[str, Any], problem: str
) -> None:
    assert problem in problem_of(report(**changes))


# What cannot be

S = 1_000_000
CREATED_US = AT_US - 600 * S
ORDER = dispatch_pb2.Dispatch(
    uid="d1", created_us=CREATED_US, start_us=AT_US - 120 * S, duration_seconds=120
)
"""From 120 s before the report's arrival until then."""

ASSET = dispatch_pb2.Asset(rated_max_injection_watts=10_000, rated_max_absorption_watts=8_000)


def around(
    dispatch: dispatch_pb2.Dispatch | None = ORDER, *, max_injection_watts: int = 0, **facts: int
) -> Circumstances:
    defaults = {"received_us": AT_US, "written_us": CREATED_US + S, "clock_off_us": 0}
    return Circumstances(
        asset=ASSET,
        capability=agent_pb2.Capability(max_injection_watts=max_injection_watts),
        dispatch=dispatch,
        **defaults | facts,
    )


def outcome(**changes: Any) -> dispatch_pb2.DispatchReport:
    """Return what an honest agent says of a window of 120 s at 10 kW."""
    facts: dict[str, Any] = {
        "phase": "Complete",
        "planned_start_us": AT_US - 120 * S,
        "planned_end_us": AT_US,
        "applied_us": AT_US - 120 * S,
        "ended_us": AT_US,
        "verified": "True",
        "verified_us": AT_US - 110 * S,
        "evidence": "Effect",
        "within_tolerance_milliseconds": 118_000,
        "active_milliseconds": 120_000,
        "delivered_watt_hours": 333.0,
    }
    return dispatch_pb2.DispatchReport(**facts | changes)


def shifted(seconds: int, **changes: Any) -> dispatch_pb2.DispatchReport:
    """Return the same by a clock that is ahead by so much."""
    told = outcome()
    names = ("planned_start_us", "planned_end_us", "applied_us", "ended_us", "verified_us")
    return outcome(**{name: getattr(told, name) + seconds * S for name in names} | changes)


def late(seconds: int) -> Circumstances:
    return around(received_us=AT_US + seconds * S)


FRESH = around(
    dispatch_pb2.Dispatch(start_us=AT_US - 10 * S, duration_seconds=9, created_us=AT_US - 10 * S),
    written_us=AT_US - 9 * S,
)

SOON = around(received_us=AT_US - 110 * S)
"""Ten seconds into the window."""


@pytest.mark.parametrize(
    ("told", "circumstances"),
    [
        pytest.param(outcome(), around(), id="as ordered"),
        pytest.param(outcome(), around(None), id="settled here"),
        pytest.param(outcome(), around(written_us=0), id="another gateway wrote it"),
        pytest.param(outcome(), around(written_us=AT_US - S), id="another wrote it before us"),
        pytest.param(outcome(), late(86_400), id="told a day later"),
        pytest.param(
            outcome(active_milliseconds=400_000), late(300), id="longer than ordered: late revert"
        ),
        pytest.param(outcome(delivered_watt_hours=-333.0), around(), id="absorbed"),
        pytest.param(
            outcome(ended_us=AT_US - 60 * S, active_milliseconds=60_000, delivered_watt_hours=160),
            around(received_us=AT_US - 3 * S),
            id="clocks differ by seconds",
        ),
        pytest.param(
            outcome(active_milliseconds=31_000, within_tolerance_milliseconds=29_000),
            around(received_us=AT_US - 89 * S),
            id="cut by a clock set forward",
        ),
        pytest.param(
            outcome(ended_us=AT_US - 60 * S),
            around(received_us=AT_US - 55 * S, clock_off_us=60 * S),
            id="begun by a clock that was 60 s ahead and is set right",
        ),
        pytest.param(shifted(-3600), around(None), id="an hour slow, and nobody saw it"),
        pytest.param(shifted(3600), around(), id="an hour ahead, and nobody saw it"),
        pytest.param(
            outcome(
                applied_us=AT_US - 10 * S, planned_start_us=AT_US - 10 * S, ended_us=AT_US - S,
                planned_end_us=AT_US + 110 * S, active_milliseconds=120_000, interruptions=1,
                within_tolerance_milliseconds=1, delivered_watt_hours=9,
            ),
            around(
                dispatch_pb2.Dispatch(
                    created_us=AT_US - 11 * S, start_us=AT_US - 10 * S, duration_seconds=120
                ), written_us=0,
            ),
            id="restarted, with a clock that was two minutes ahead as it did",
        ),
        pytest.param(
            outcome(
                planned_end_us=AT_US - 9 * S, active_milliseconds=61_000, ended_us=AT_US + 60 * S,
                delivered_watt_hours=9, within_tolerance_milliseconds=1,
            ),
            FRESH, id="its window was over as it started, by a clock that is a minute ahead",
        ),
        pytest.param(shifted(-299), around(), id="minutes slow, set right once it was due"),
        pytest.param(
            shifted(3600, clock_offset_milliseconds=-3_600_000), around(None), id="an hour ahead"
        ),
        pytest.param(shifted(3600), around(None, clock_off_us=3600 * S), id="an hour ahead, seen"),
        pytest.param(
            outcome(), around(received_us=CREATED_US - 3000 * S, written_us=CREATED_US - 3300 * S),
            id="a gateway an hour slow",
        ),
        pytest.param(
            outcome(delivered_watt_hours=420.0), around(max_injection_watts=12_000),
            id="more than the spec's rating, not than the device's",
        ),
        pytest.param(
            outcome(
                phase="Active", ended_us=0, active_milliseconds=0, delivered_watt_hours=5,
                within_tolerance_milliseconds=4000,
            ), SOON, id="verified in the window",
        ),
        pytest.param(
            outcome(phase="Failed", verified="False", ended_us=1), around(), id="failed"
        ),
        pytest.param(dispatch_pb2.DispatchReport(phase="Complete"), around(), id="old and terse"),
    ],
)  # fmt: skip
def test_what_can_be_is_taken(
    told: dispatch_pb2.DispatchReport, circumstances: Circumstances
) -> None:
    assert impossibility_of(told, circumstances) == ""


@pytest.mark.parametrize(
    ("told", "circumstances", "problem"),
    [
        (outcome(ended_us=AT_US - 110 * S, active_milliseconds=9000), SOON, "phase Complete: its"),
        (outcome(ended_us=0, active_milliseconds=0), SOON, "end is 110 s after the report"),
        (dispatch_pb2.DispatchReport(phase="Complete"), SOON, "end is 110 s after the report"),
        (
            outcome(
                planned_end_us=AT_US - 119 * S, ended_us=AT_US - 119 * S, active_milliseconds=1000
            ),
            SOON,
            "end is 110 s after the report, and 119 s after ended_us",
        ),
        (outcome(ended_us=AT_US - 60 * S), around(None, received_us=AT_US - 50 * S), "is 50 s"),
        (outcome(within_tolerance_milliseconds=0), around(), "without samples: no within_tol"),
        (outcome(evidence="ReadBack"), around(), "no evidence Effect"),
        (outcome(verified_us=0, applied_us=0), around(), "no applied_us, verified_us"),
        (outcome(verified="False", within_tolerance_milliseconds=0), around(), "no within_tol"),
        (outcome(active_milliseconds=3_600_000), around(), "3600000 is more than the 420000 ms"),
        (outcome(active_milliseconds=3_600_000), around(None), "is more than the 420000 ms"),
        (outcome(active_milliseconds=16_000), FRESH, "16000 is more than the 15000 ms"),
        (
            outcome(within_tolerance_milliseconds=16_000, active_milliseconds=1),
            FRESH,
            "than the 15",
        ),
        (
            outcome(active_milliseconds=1, applied_us=0, verified="", evidence=""),
            around(),
            "not set",
        ),
        (
            outcome(
                active_milliseconds=9000, within_tolerance_milliseconds=9, delivered_watt_hours=53
            ),
            FRESH,
            "53 is more than 52 Wh, 1.25 of the rating of 10000 W",
        ),
        (outcome(delivered_watt_hours=-1e9), around(), "delivered_watt_hours -1000000000 is more"),
        (
            outcome(applied_us=AT_US + 3480 * S, reverted_us=AT_US),
            around(None),
            "applied_us is 3480 s after the report",
        ),
        (shifted(-301), around(), "applied_us is 301 s before the start that was ordered"),
        (
            shifted(3600, active_milliseconds=900_000_000, clock_offset_milliseconds=-(10**12)),
            FRESH,
            "900000000 is more than the 315000 ms",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_the_field_and_the_limit(
    told: dispatch_pb2.DispatchReport, circumstances: Circumstances, problem: str
) -> None:
    assert problem in impossibility_of(told, circumstances)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"phase": "Active"}, "phase Active (WindowEnded) is not that of the last transition"),
        ({"reason": "Other"}, "phase Complete (Other) is not that of the last transition"),
        (
            {"transitions": step(phase="Failed") + step(phase="Complete", reason="WindowEnded")},
            "a transition follows a terminal phase",
        ),
    ],
)
def test_a_course_that_ends_in_two_ways_is_refused(changes: dict[str, Any], problem: str) -> None:
    assert problem in problem_of(report(**changes))
