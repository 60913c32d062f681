"""How long a dispatch took for each stage of its way, by the timelines of its status. Pure.

A stage is passed once: the instant of its end is in a status that was stored, and was not in the
one before. So a restart of the operator passes none again.
"""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

from derops.schedules import SECOND_US
from derops_operator.resources.instants import parse_instant

LATE_REVERT_SECONDS = 10.0
"""How long after the promised end a device may be reverted; later is late."""


class Stage(StrEnum):
    """A stage of the way of a dispatch; its value is how it ends."""

    SENT = "sent"
    """From submission until a gateway wrote it to the agent's stream."""

    ACKED = "acked"
    """From there until the agent had accepted it."""

    APPLIED = "applied"
    """From the later of its start and its acceptance until the device took it."""

    VERIFIED = "verified"
    """From there until the measured power followed."""


_ENDS = {
    Stage.SENT: "sentAt",
    Stage.ACKED: "ackedAt",
    Stage.APPLIED: "appliedAt",
    Stage.VERIFIED: "verifiedAt",
}


def measure_stages(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[Stage, float]:
    """Return the seconds of each stage that ended between two statuses of a dispatch.

    Operator and gateway tell the first instants by their clock, the agent the others by its own:
    what lies between is measured by the offset that the gateway saw. None is below zero.
    """
    known, times = _timeline(before), _timeline(after)
    found: dict[Stage, float] = {}
    for stage, end in _ENDS.items():
        begun_us = _begin_us(stage, times)
        if end in times and end not in known and begun_us is not None:
            seconds = (parse_instant(times[end]) - begun_us) / SECOND_US
            found[stage] = max(0.0, seconds)
    return found


def measure_overrun(before: Mapping[str, Any], after: Mapping[str, Any]) -> float | None:
    """Return how long after the promised end the device was reverted, if that is news; in s."""
    known, times = _timeline(before), _timeline(after)
    if "revertedAt" not in times or "revertedAt" in known or "plannedEnd" not in times:
        return None
    late_us = parse_instant(times["revertedAt"]) - parse_instant(times["plannedEnd"])
    return max(0.0, late_us / SECOND_US)


def _timeline(status: Mapping[str, Any]) -> Mapping[str, Any]:
    times: Mapping[str, Any] = status.get("timeline", {})
    return times


def _begin_us(stage: Stage, times: Mapping[str, Any]) -> int | None:
    """Return when a stage began, by the clock of who tells its end; None = nobody knows."""
    match stage:
        case Stage.SENT:
            return _instant_us(times, "submittedAt")
        case Stage.ACKED:
            sent_us = _instant_us(times, "sentAt")
            offset_us = int(times.get("clockOffsetMilliseconds", 0)) * 1000
            return None if sent_us is None else sent_us - offset_us
        case Stage.APPLIED:
            begins = (_instant_us(times, name) for name in ("plannedStart", "ackedAt"))
            return max((each for each in begins if each is not None), default=None)
        case Stage.VERIFIED:
            return _instant_us(times, "appliedAt")


def _instant_us(times: Mapping[str, Any], name: str) -> int | None:
    return parse_instant(times[name]) if name in times else None
