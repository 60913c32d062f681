"""What a report of an agent may say. Pure.

Behind the gateway a report becomes status and history, whose fields have bounds. A report that
exceeds them is refused here, alone, instead of blocking the status of its dispatch for good. So is
a report of what cannot be, whatever the clock of its agent did.
"""

import math
from dataclasses import dataclass

from derops.lifecycle import MESSAGE_LIMIT, Phase
from derops.modes import Evidence
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_headend.fleet.telemetry import MAX_TIME_US

MAX_WORD = 64
MAX_TRANSITIONS = 64
"""An execution has four at most: each phase that it goes through is further along."""

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
"""The phases that an agent reports; the headend alone sets the others."""

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


SLACK_US = 5 * SECOND_US
"""By how much clocks of the headend may differ: of gateways, operator and API server."""

UNSEEN_US = 300 * SECOND_US
"""By how much an agent's clock may have been wrong while nobody compared it."""

MOST_OF_RATING = 1.25
"""The power that a device is believed to reach, as a share of its rating."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """What a gateway knows by itself when a report arrives."""

    received_us: int
    """When the report came, by the gateway's own clock."""

    asset: dispatch_pb2.Asset
    capability: agent_pb2.Capability
    """What the agent said in its Hello."""

    dispatch: dispatch_pb2.Dispatch | None
    """None = this gateway does not hold it: it is settled, or never was."""

    written_us: int
    """When this gateway first wrote it to an agent; another may have done so before. 0 = never."""

    clock_off_us: int
    """The most that heartbeats of this stream showed the agent's clock to be off."""


def problem_of(report: dispatch_pb2.DispatchReport) -> str:
    """Return what is wrong with a report; empty = nothing."""
    return (
        _problem_of_fields(report)
        or _problem_of_lists(report)
        or _problem_of_step(report.phase, report.reason, report.message, 0)
        or _problem_of_transitions(report)
        or _problem_of_course(report)
    )


def _problem_of_fields(report: dispatch_pb2.DispatchReport) -> str:
    for word in _WORDS:
        if len(getattr(report, word)) > MAX_WORD:
            return f"{word} has more than {MAX_WORD} characters"
    for field, (lowest, highest) in _BOUNDS.items():
        value = getattr(report, field)
        if not (lowest <= value <= highest and math.isfinite(value)):
            return f"{field} {value} is not between {lowest} and {highest}"
    for text in ("pending_error", "rounding"):
        if len(getattr(report, text)) > MESSAGE_LIMIT:
            return f"{text} has more than {MESSAGE_LIMIT} characters"
    return ""


def _problem_of_lists(report: dispatch_pb2.DispatchReport) -> str:
    if len(report.transitions) > MAX_TRANSITIONS:
        return f"{len(report.transitions)} transitions; up to {MAX_TRANSITIONS} are allowed"
    if len(report.supersedes) > MAX_SUPERSEDED or any(
        len(uid) > MAX_WORD for uid in report.supersedes
    ):
        return f"supersedes has more than {MAX_SUPERSEDED} uids of {MAX_WORD} characters"
    return ""


def _problem_of_transitions(report: dispatch_pb2.DispatchReport) -> str:
    for step in report.transitions:
        problem = _problem_of_step(step.phase, step.reason, step.message, step.at_us)
        if problem:
            return f"a transition: {problem}"
    return ""


def _problem_of_course(report: dispatch_pb2.DispatchReport) -> str:
    steps = report.transitions
    if any(Phase(step.phase).terminal for step in steps[:-1] if step.phase):
        return "a transition follows a terminal phase"
    if steps and (steps[-1].phase, steps[-1].reason) != (report.phase, report.reason):
        return (
            f"phase {report.phase} ({report.reason}) is not that of the last transition, "
            f"{steps[-1].phase} ({steps[-1].reason})"
        )
    return ""


def _problem_of_step(phase: str, reason: str, message: str, at_us: int) -> str:
    if phase not in _PHASES:
        return f"phase {phase[:MAX_WORD]!r} is not one that an agent reports"
    if len(reason) > MAX_WORD or len(message) > MESSAGE_LIMIT:
        return f"the reason has more than {MAX_WORD} characters or the message {MESSAGE_LIMIT}"
    if not 0 <= at_us <= MAX_TIME_US:
        return f"time {at_us} us is not between 1970 and 2100"
    return ""


def impossibility_of(report: dispatch_pb2.DispatchReport, around: Circumstances) -> str:
    """Return what of a report cannot be; empty = all of it can.

    Clocks of agents are wrong, and get corrected. So a span is compared with the gateway's own
    clock, and an instant of the agent with another of its instants. A window may have been held for
    longer than was ordered: a device may be reverted late.
    """
    return (
        _problem_of_start(report, around)
        or _problem_of_end(report, around)
        or _problem_of_verdict(report)
        or _problem_of_spans(report, around)
    )


def _problem_of_start(report: dispatch_pb2.DispatchReport, around: Circumstances) -> str:
    """Return why a window cannot have begun: by the agent's own clock it was too early."""
    if around.dispatch is None or not report.applied_us:
        return ""
    early_us = around.dispatch.start_us - report.applied_us
    if early_us <= UNSEEN_US + _clock_off_us(report, around):
        return ""
    return f"applied_us is {early_us / SECOND_US:.0f} s before the start that was ordered"


def _problem_of_end(report: dispatch_pb2.DispatchReport, around: Circumstances) -> str:
    """Return why a window cannot have ended as planned: no clock says that its end has come."""
    if report.phase != Phase.COMPLETE:
        return ""
    end_us, order = report.planned_end_us, around.dispatch
    if order is not None:
        end_us = max(end_us, order.start_us + order.duration_seconds * SECOND_US)
    if max(report.ended_us, around.received_us) + SLACK_US >= end_us:
        return ""
    if report.applied_us and _may_be_whole(report, around, end_us - report.applied_us):
        return ""
    return (
        f"phase Complete: its planned end is {(end_us - around.received_us) / SECOND_US:.0f} s "
        f"after the report, and {(end_us - report.ended_us) / SECOND_US:.0f} s after ended_us"
    )


def _may_be_whole(
    report: dispatch_pb2.DispatchReport, around: Circumstances, length_us: int
) -> bool:
    """Tell whether a window may have had its length: a clock was ahead, and was corrected since."""
    since_us = _since_begun_us(report, around)
    if since_us is None or since_us < length_us:
        return False
    was_off = _clock_off_us(report, around) > SLACK_US
    held_us = report.active_milliseconds * 1000 + 2 * SLACK_US
    return was_off or bool(report.interruptions) or held_us >= length_us


def _problem_of_verdict(report: dispatch_pb2.DispatchReport) -> str:
    """Return which of the values is missing that an agent sends with a verdict from samples."""
    if report.verified != "True" and report.evidence != Evidence.EFFECT:
        return ""
    told = {
        "applied_us": report.applied_us,
        "within_tolerance_milliseconds": report.within_tolerance_milliseconds,
        "delivered_watt_hours": report.HasField("delivered_watt_hours"),
    }
    if report.verified == "True":
        told |= {
            "verified_us": report.verified_us,
            "evidence Effect": report.evidence == Evidence.EFFECT,
        }
    missing = ", ".join(name for name, there in told.items() if not there)
    return f"verified {report.verified} without samples: no {missing}" if missing else ""


def _problem_of_spans(report: dispatch_pb2.DispatchReport, around: Circumstances) -> str:
    spans = {
        "active_milliseconds": report.active_milliseconds,
        "within_tolerance_milliseconds": report.within_tolerance_milliseconds,
    }
    if not any(spans.values()) and not report.delivered_watt_hours:
        return ""
    if not report.applied_us:
        return "an active time or a measured energy is given, and applied_us is not set"
    most_us = _most_us(report, around)
    if most_us is None:
        ahead_seconds = (report.applied_us - around.received_us) / SECOND_US
        return f"applied_us is {ahead_seconds:.0f} s after the report; correct the agent's clock"
    for field, milliseconds in spans.items():
        if milliseconds * 1000 > most_us:
            most = most_us // 1000
            return f"{field} {milliseconds} is more than the {most} ms since it was applied"
    rating_watts = max(
        around.asset.rated_max_injection_watts,
        around.asset.rated_max_absorption_watts,
        around.capability.max_injection_watts,
        around.capability.max_absorption_watts,
    )
    most_watt_hours = MOST_OF_RATING * rating_watts * max(0, most_us) / 3.6e9
    if rating_watts and abs(report.delivered_watt_hours) > most_watt_hours:
        return (
            f"delivered_watt_hours {report.delivered_watt_hours:.0f} is more than "
            f"{most_watt_hours:.0f} Wh, {MOST_OF_RATING} of the rating of {rating_watts} W since "
            "it was applied"
        )
    return ""


def _most_us(report: dispatch_pb2.DispatchReport, around: Circumstances) -> int | None:
    """Return for how long a device can have held the setpoint at most; None = no bound is known."""
    off_us = _clock_off_us(report, around)
    bounds_us = [_since_begun_us(report, around)]
    if report.applied_us <= around.received_us + UNSEEN_US + off_us:
        bounds_us.append(around.received_us - report.applied_us + UNSEEN_US + off_us)
    return min((each for each in bounds_us if each is not None), default=None)


def _since_begun_us(report: dispatch_pb2.DispatchReport, around: Circumstances) -> int | None:
    """Return for how long the dispatch exists, by clocks that no agent sets; None = not known.

    It exists since its creation, or since this gateway wrote it, whichever came first. An agent
    that was restarted goes on counting by its wall clock, which may have been set meanwhile.
    """
    if around.dispatch is None or not around.dispatch.created_us:
        return None
    begun_us = min(around.dispatch.created_us, around.written_us or around.dispatch.created_us)
    off_us = UNSEEN_US if report.interruptions else _clock_off_us(report, around)
    slack_us = SLACK_US + min(off_us, UNSEEN_US)
    return around.received_us - begun_us + slack_us


def _clock_off_us(report: dispatch_pb2.DispatchReport, around: Circumstances) -> int:
    """Return by how much an agent's clock is known to have been off."""
    ahead_us = max(report.ended_us, report.reverted_us) - around.received_us
    return max(around.clock_off_us, 1000 * abs(report.clock_offset_milliseconds), ahead_us)
