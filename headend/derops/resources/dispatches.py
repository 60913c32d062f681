"""Dispatch: an order to one asset, and what became of it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AwareDatetime

from derops.lifecycle import Phase
from derops.resources.base import Condition, Metadata, Section
from derops.schedules import default_start_deadline_seconds

ModeName = Literal["ActivePower", "GenerationLimit", "LoadLimit", "CeaseToEnergize"]


class AssetReference(Section):
    """A DERAsset in the same namespace."""

    name: str


class Setpoint(Section):
    """What the device shall do; exactly the value of the mode is set."""

    mode: ModeName
    active_power_watts: int | None = None
    max_generation_watts: int | None = None
    max_load_watts: int | None = None

    @property
    def watts(self) -> int:
        """The mode's value: signed for ActivePower, else a magnitude; 0 for CeaseToEnergize."""
        values = {
            "ActivePower": self.active_power_watts,
            "GenerationLimit": self.max_generation_watts,
            "LoadLimit": self.max_load_watts,
        }
        return values.get(self.mode) or 0


class DispatchSpec(Section):
    """The order."""

    asset_ref: AssetReference
    setpoint: Setpoint
    start_time: AwareDatetime | None = None
    duration_seconds: int
    start_deadline_seconds: int | None = None
    randomize_start_seconds: int = 0
    late_policy: Literal["KeepEnd", "KeepDuration"] = "KeepEnd"
    report_deadline_seconds: int = 900
    primacy: int = 100
    verify: Literal["Required", "Report"] = "Report"
    desired_state: Literal["Active", "Cancelled"] = "Active"
    ttl_seconds_after_finished: int | None = None

    @property
    def accept_within_seconds(self) -> int:
        """How long after the start an agent may accept it, in s: as given, else the default."""
        given = self.start_deadline_seconds
        return default_start_deadline_seconds(self.duration_seconds) if given is None else given


class Timeline(Section):
    """When each step happened; of the device's doings by the agent's clock."""

    submitted_at: AwareDatetime | None = None
    sent_at: AwareDatetime | None = None
    acked_at: AwareDatetime | None = None
    planned_start: AwareDatetime | None = None
    planned_end: AwareDatetime | None = None
    applied_at: AwareDatetime | None = None
    verified_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None
    reverted_at: AwareDatetime | None = None
    reported_at: AwareDatetime | None = None
    clock_offset_milliseconds: int | None = None


class Value(Section):
    """A mode with its value; the sign is that of ``Setpoint.watts``."""

    mode: str
    watts: int


class ExecutionStatus(Section):
    """What was asked for and what the device did."""

    requested: Value | None = None
    applied: Value | None = None
    clamped_by: str | None = None
    rounding: str | None = None
    active_seconds: int | None = None
    within_tolerance_seconds: int | None = None
    delivered_watt_hours: int | None = None
    interruptions: int | None = None
    evidence: str | None = None


class Reversion(Section):
    """What ends the setpoint if nobody else does."""

    guard: str
    deadline: AwareDatetime | None = None


class LateReport(Section):
    """What the agent said after the end, where that differs."""

    phase: str
    reason: str
    message: str
    at: AwareDatetime


class Step(Section):
    """A transition in the history."""

    at: AwareDatetime
    phase: str
    reason: str
    message: str
    actor: Literal["Operator", "Gateway", "Agent"]


class DispatchStatus(Section):
    """What became of the order; an observed generation of -1 means that nobody looked yet."""

    phase: Phase = Phase.SUBMITTED
    reason: str | None = None
    message: str | None = None
    created_by: str | None = None
    observed_generation: int
    completion_time: AwareDatetime | None = None
    conditions: tuple[Condition, ...] = ()
    timeline: Timeline | None = None
    execution: ExecutionStatus | None = None
    reversion: Reversion | None = None
    superseded_by: str | None = None
    supersedes: tuple[str, ...] = ()
    late_report: LateReport | None = None
    history: tuple[Step, ...] = ()


class Dispatch(Section):
    """A Dispatch."""

    metadata: Metadata
    spec: DispatchSpec
    status: DispatchStatus = DispatchStatus(observed_generation=-1)


def parse_dispatch(manifest: Mapping[str, Any]) -> Dispatch:
    """Read a Dispatch as the API server gives it.

    Raises:
        pydantic.ValidationError: It is not a Dispatch of this version; a ValueError.
    """
    return Dispatch.model_validate(manifest)
