"""What the gateway takes from an agent as a report."""

import math
from typing import Any

import pytest

from derops.lifecycle import MESSAGE_LIMIT
from derops.wire.v1 import dispatch_pb2
from derops_headend.fleet.reports import problem_of

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
        ({"transitions": step(at_us=2**62)}, "a transition: time 4611686018427387904 us"),
        ({"transitions": step(message="m" * 1025)}, "a transition: the reason has more than 64"),
    ],
)
def test_a_report_beyond_a_bound_is_refused_with_the_bound(
    changes: dict[str, Any], problem: str
) -> None:
    assert problem in problem_of(report(**changes))
