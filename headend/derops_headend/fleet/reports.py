"""What a report of an agent may say. Pure.

Behind the gateway a report becomes status and history, whose fields have bounds; one that exceeds
them is refused here, alone, instead of blocking the status of its dispatch for good.
"""

import math

from derops.lifecycle import MESSAGE_LIMIT, Phase
from derops.wire.v1 import dispatch_pb2
from derops_headend.fleet.telemetry import MAX_TIME_US

MAX_WORD = 64
MAX_TRANSITIONS = 1000
MAX_SUPERSEDED = 256
MAX_WATTS = 10**12
MAX_WATT_HOURS = 10**15
MAX_COUNT = 10**12

_PHASES = frozenset(
    {
        "",
        Phase.ACKED,
        Phase.ACTIVE,
        Phase.COMPLETE,
        Phase.FAILED,
        Phase.REJECTED,
        Phase.CANCELLED,
        Phase.SUPERSEDED,
        Phase.EXPIRED,
    }
)
"""What an agent can know; the others are the headend's to say."""

_WORDS = (
    "dispatch_uid",
    "reason",
    "clamped_by",
    "evidence",
    "verified",
    "verified_reason",
    "reversion_guard",
    "superseded_by",
)
_INSTANTS = (
    "accepted_us",
    "planned_start_us",
    "planned_end_us",
    "applied_us",
    "ended_us",
    "reverted_us",
    "verified_us",
)
_BOUNDS = {
    **dict.fromkeys(_INSTANTS, (0, MAX_TIME_US)),
    "observed_generation": (0, MAX_COUNT),
    "active_milliseconds": (0, MAX_COUNT),
    "within_tolerance_milliseconds": (0, MAX_COUNT),
    "interruptions": (0, MAX_COUNT),
    "applied_watts": (-MAX_WATTS, MAX_WATTS),
    "delivered_watt_hours": (-MAX_WATT_HOURS, MAX_WATT_HOURS),
    "clock_offset_milliseconds": (-MAX_TIME_US, MAX_TIME_US),
}


def problem_of(report: dispatch_pb2.DispatchReport) -> str:
    """Return what is wrong with a report; empty = nothing."""
    for word in _WORDS:
        if len(getattr(report, word)) > MAX_WORD:
            return f"{word} has more than {MAX_WORD} characters"
    for field, (lowest, highest) in _BOUNDS.items():
        value = getattr(report, field)
        if not (lowest <= value <= highest and math.isfinite(value)):
            return f"{field} {value} is not between {lowest} and {highest}"
    if len(report.pending_error) > MESSAGE_LIMIT:
        return f"pending_error has more than {MESSAGE_LIMIT} characters"
    if len(report.transitions) > MAX_TRANSITIONS:
        return f"{len(report.transitions)} transitions; up to {MAX_TRANSITIONS} are allowed"
    if len(report.supersedes) > MAX_SUPERSEDED or any(
        len(uid) > MAX_WORD for uid in report.supersedes
    ):
        return f"supersedes has more than {MAX_SUPERSEDED} uids of {MAX_WORD} characters"
    return _problem_of_step(report.phase, report.reason, report.message, 0) or next(
        (
            f"a transition: {problem}"
            for step in report.transitions
            if (problem := _problem_of_step(step.phase, step.reason, step.message, step.at_us))
        ),
        "",
    )


def _problem_of_step(phase: str, reason: str, message: str, at_us: int) -> str:
    if phase not in _PHASES:
        return f"phase {phase[:MAX_WORD]!r} is not one that an agent reports"
    if len(reason) > MAX_WORD or len(message) > MESSAGE_LIMIT:
        return f"the reason has more than {MAX_WORD} characters or the message {MESSAGE_LIMIT}"
    if not 0 <= at_us <= MAX_TIME_US:
        return f"time {at_us} us is not between 1970 and 2100"
    return ""
