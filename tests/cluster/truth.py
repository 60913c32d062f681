"""Whether status, database and telemetry of a dispatch agree with its device's account. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tests.kills.judging import TOLERANCE_SECONDS, Stay, judge, stays, watts_of

from derops.schedules import SECOND_US

SETTLE_SECONDS = 4
"""After each write: the simulated battery ramps, and a sample has the power of its own moment."""

TOLERANCE_WATTS = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that is known of one dispatch in mode ActivePower, whose value no other one had.

    Attributes:
        dispatch: The resource, in a terminal phase.
        account: What was written to the device, by the device.
        samples: Telemetry of the asset from the database, in order: ``at_us`` and ``watts``.
        history: The line of ``dispatch_history``.
        lives_lost: How often the agent's process was ended while the device held the value.
        silences: Stretches in which no agent ran, so that there can be no samples.
    """

    dispatch: Mapping[str, Any]
    account: Sequence[Mapping[str, Any]]
    samples: Sequence[Mapping[str, Any]]
    history: Mapping[str, Any] | None
    lives_lost: int = 0
    silences: Sequence[Stay] = ()


def untruths(evidence: Evidence) -> list[str]:
    """Return what somebody says that is not so; empty = all of it is true."""
    return [
        *(str(violation) for violation in judge(evidence.dispatch, evidence.account)),
        *_window(evidence),
        *_history(evidence),
        *_telemetry(evidence),
    ]


def _held(evidence: Evidence) -> list[Stay]:
    setpoint = evidence.dispatch["spec"]["setpoint"]
    return stays(evidence.account, setpoint["mode"], watts_of(setpoint))


def _window(evidence: Evidence) -> Iterator[str]:
    status = evidence.dispatch["status"]
    execution = status.get("execution", {})
    told = execution.get("interruptions", 0)
    if told != evidence.lives_lost:
        yield f"interruptions is {told}, the agent was ended {evidence.lives_lost} times meanwhile"
    if status["phase"] == "Complete" and not evidence.lives_lost:
        active, window = execution["activeSeconds"], _seconds_from_start_to_planned_end(status)
        if abs(active - window) > TOLERANCE_SECONDS:
            yield f"activeSeconds is {active} of {window:.1f}, and nothing cut it short"


def _seconds_from_start_to_planned_end(status: Mapping[str, Any]) -> float:
    """Return how long a dispatch had from when it came to the device, perhaps late."""
    applied, end = (
        datetime.fromisoformat(status["timeline"][key]) for key in ("appliedAt", "plannedEnd")
    )
    return (end - applied).total_seconds()


def _history(evidence: Evidence) -> Iterator[str]:
    status, line = evidence.dispatch["status"], evidence.history
    if line is None:
        yield "the database has no line of it"
        return
    for key in ("phase", "reason"):
        if line[key] != status[key]:
            yield f"{key} is {status[key]} in the status and {line[key]} in the database"
    execution = status.get("execution", {})
    stored = line["active_seconds"] or 0
    if abs(stored - execution.get("activeSeconds", 0)) > 1:
        yield f"activeSeconds is {execution.get('activeSeconds')}, in the database {stored}"
    if (line["interruptions"] or 0) != execution.get("interruptions", 0):
        yield f"interruptions is {execution.get('interruptions')}, {line['interruptions']} stored"


def _telemetry(evidence: Evidence) -> Iterator[str]:
    """Compare samples with what the device held: their power, and that none is missing."""
    watts = watts_of(evidence.dispatch["spec"]["setpoint"])
    for stay in _held(evidence):
        settled = Stay(from_us=stay.from_us + SETTLE_SECONDS * SECOND_US, until_us=stay.until_us)
        inside = [each for each in evidence.samples if _within(each["at_us"], settled)]
        wrong = [each for each in inside if abs(each["watts"] - watts) > TOLERANCE_WATTS]
        if wrong:
            yield f"{len(wrong)} of {len(inside)} samples are not near {watts} W: {wrong[:3]}"
        silent_us = sum(_overlap_us(settled, silence) for silence in evidence.silences)
        seconds = (settled.until_us - settled.from_us - silent_us) / SECOND_US
        moments = {each["at_us"] for each in inside}
        if len(moments) < seconds - 2:
            yield f"{len(moments)} samples in {seconds:.0f} s in which the device held {watts} W"


def _within(at_us: int, stay: Stay) -> bool:
    return stay.from_us <= at_us < stay.until_us


def _overlap_us(one: Stay, other: Stay) -> int:
    return max(0, min(one.until_us, other.until_us) - max(one.from_us, other.from_us))
