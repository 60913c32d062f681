"""One execution of a dispatch: what was ordered, where it stands and what the device did.

``Execution`` is also the format of the ledger: none of its fields is renamed.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from derops.lifecycle import Phase
from derops.log_fields import dispatch_fields
from derops.modes import Guard
from derops.schedules import Window
from derops.transitions import fold
from derops_agent.clock import Moment

LATE_REVERT_US = 10_000_000
"""An execution whose device held its setpoint longer than this past the end has failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A dispatch as it was received; its uid is also that of its execution."""

    uid: str
    asset_uid: str
    generation: int
    mode: str
    watts: int
    start_us: int
    duration_seconds: int
    start_deadline_seconds: int
    late_policy: str
    randomize_start_seconds: int
    primacy: int
    verify_required: bool
    cancelled: bool
    cancel_reason: str
    known_phase: str
    created_us: int
    other_ledger_id: str = ""
    name: str = ""
    """Of the Dispatch, for people."""

    request_id: str = ""
    """Of the call that ordered it, for people; empty = none is known."""

    @property
    def log_fields(self) -> dict[str, str]:
        """What a line about it says of it; of which asset it is, each line says anyway."""
        return dispatch_fields(
            namespace="",
            asset="",
            dispatch=self.name,
            uid=self.uid,
            request_id=self.request_id,
        )

    @property
    def strength(self) -> tuple[int, int, str]:
        """Sort key: lower primacy, then newer, then larger uid; the greatest wins."""
        return (-self.primacy, self.created_us, self.uid)


class Stage(StrEnum):
    """What the agent has to do next; finer than the phase, and never sent."""

    WAITING = "Waiting"
    """Accepted; its start has not come."""

    APPLYING = "Applying"
    """About to be written: from here on the device may hold it."""

    HOLDING = "Holding"
    """The device holds it."""

    REVERTING = "Reverting"
    """It ends as ``ending`` says once the device is reverted."""

    DONE = "Done"
    """The phase is terminal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A transition, with the time at which it happened."""

    phase: Phase
    reason: str
    message: str
    at_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """What samples showed while the device held the setpoint."""

    last_sample_us: int = 0
    """When the last sample was taken: a steady instant, see ``Execution.steady_us``."""

    within_us: int = 0
    """Time within tolerance since the setpoint was applied."""

    judged_us: int = 0
    """Sampled time after settling."""

    good_us: int = 0
    """Of ``judged_us``, the part within tolerance."""

    in_a_row: int = 0
    """How many samples in a row were within tolerance until now; below 0, were not."""

    delivered_watt_hours: float | None = None
    told: str = ""
    """The verdict that was reported while the window was open; empty = none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """All that is known of an execution; each change makes a new value."""

    order: Order
    phase: Phase
    stage: Stage
    reason: str
    message: str = ""
    steps: tuple[Step, ...] = ()
    observed_generation: int = 0
    accepted_us: int = 0
    planned: Window | None = None
    applied_us: int = 0
    ended_us: int = 0
    reverted_us: int = 0
    verified_us: int = 0
    target_watts: int = 0
    """What is written: the ordered value, within the limits."""

    clamped_by: str = ""
    sent_watts: int | None = None
    """What the device says that it holds of ``target_watts``, or else what its steps allow; None =
    all."""

    rounding: str = ""
    """Why that is not ``target_watts``, in words; empty = it is."""

    arrived_us: int = 0
    """When all of it was written: a steady instant, a ramp later than ``applied_us``; 0 = not
    yet."""

    way_watts: int | None = None
    """What the device last said that it holds on the ramp to all of it; None = nothing."""

    held_since: Moment | None = None
    """Since when the device holds it without a break; None = it does not."""

    ends_monotonic_us: int = 0
    """When its window ends, by the monotonic clock; 0 = it was never held."""

    active_us: int = 0
    """For how long the device held it before ``held_since``."""

    bridged_us: int = 0
    """For how long past its end the device keeps its value, until the next window begins."""

    let_go_monotonic_us: int = 0
    """When the device let go of it, by the monotonic clock; 0 = not yet."""

    letting_go: Moment | None = None
    """When the first write after its end was made that the device does not show yet; None = no
    such write is waited for."""

    guard: str = Guard.AGENT_TIMER
    """What ends it if the agent dies: DeviceTimer, or AgentTimer = only an agent started anew."""

    timer_ends_us: int = 0
    """When the device's own timer lets go of it, as last armed; 0 = none was armed."""

    sent: Moment | None = None
    """Since when the device may hold it by a write that it did not answer or not take at once: the
    first such write, or when the device last said that it does not; None = none may land yet."""

    blind: bool = False
    """Whether the device may have taken it and let go of it unseen, as it did not say what it
    held."""

    confirmed: Moment | None = None
    """When the device last said that it holds it."""

    losses: int = 0
    """How often the device dropped it since it was applied."""

    interruptions: int = 0
    """How often the agent restarted, or the device dropped it, in the window."""

    silences: int = 0
    """How often the device fell silent in the window, as far as that is told."""

    last_error: str = ""
    """Why it is not on the device yet: the reason that it fails with at its start deadline."""

    last_message: str = ""
    """The same in words."""

    pending_error: str = ""
    """Why what is due has not happened yet, in words for status; empty = nothing is overdue."""

    evidence: str = ""
    verified: str = "Unknown"
    verified_reason: str = ""
    effect: Effect = Effect()
    ending: Step | None = None
    superseded_by: str = ""
    supersedes: tuple[str, ...] = ()

    @property
    def owns_device(self) -> bool:
        """Whether its value belongs on the device."""
        return self.stage in (Stage.APPLYING, Stage.HOLDING)

    @property
    def may_be_on_device(self) -> bool:
        """Whether the device holds it, or may hold it by a write that it left unanswered."""
        unanswered = self.stage is Stage.APPLYING and self.sent is not None
        return self.stage in (Stage.HOLDING, Stage.REVERTING) or unanswered

    @property
    def is_doubtful(self) -> bool:
        """Whether it has ended, or is to end, and nobody knows if the device took it."""
        ends = self.stage in (Stage.REVERTING, Stage.DONE)
        return ends and self.sent is not None and not self.applied_us

    @property
    def may_land(self) -> bool:
        """Whether it has ended, and a write of it may land yet."""
        return self.stage is Stage.DONE and self.sent is not None

    def steady_us(self, at: Moment) -> int:
        """Return an instant by the wall clock as it ran when the device took the setpoint.

        Spans between two such instants are true, however the wall clock is set since.
        """
        if self.planned is None or not self.ends_monotonic_us:
            return at.wall_us
        return at.monotonic_us + self.planned.end_us - self.ends_monotonic_us

    @property
    def awaits_clock(self) -> bool:
        """Whether it completes only if its device was reverted in time, which is not known yet."""
        ending = self.ending
        return ending is not None and ending.phase is Phase.COMPLETE and not self.phase.terminal

    def step(self, phase: Phase, reason: str, message: str, at_us: int) -> "Execution":
        """Return it in a later phase, with the transition recorded; an earlier one is ignored."""
        if fold(self.phase, phase) is self.phase:
            return self
        return replace(
            self,
            phase=phase,
            reason=reason,
            message=message,
            stage=Stage.DONE if phase.terminal else self.stage,
            pending_error="" if phase.terminal else self.pending_error,
            steps=(*self.steps, Step(phase=phase, reason=reason, message=message, at_us=at_us)),
        )

    def begin_ending(self, phase: Phase, reason: str, message: str, at_us: int) -> "Execution":
        """Return it as one that takes a terminal phase once the device is reverted."""
        if self.stage in (Stage.REVERTING, Stage.DONE):
            return self
        ending = Step(phase=phase, reason=reason, message=message, at_us=at_us)
        return replace(self, stage=Stage.REVERTING, ending=ending, ended_us=at_us, pending_error="")

    def withdraw(self, phase: Phase, reason: str, message: str, at_us: int) -> "Execution":
        """End it: at once if the device cannot hold it, else once the device is reverted."""
        end = self.begin_ending if self.may_be_on_device else self.step
        return end(phase, reason, message, at_us)

    def stop_holding(self, at: Moment) -> "Execution":
        """Return it as one that the device held until ``at``."""
        if self.held_since is None:
            return self
        held_us = max(0, at.monotonic_us - self.held_since.monotonic_us)
        return replace(self, held_since=None, active_us=self.active_us + held_us)

    def count_until(self, at: Moment | None) -> "Execution":
        """Return it with its active time counted until ``at``; the device may still hold it."""
        held = self.held_since
        if held is None or at is None or at.monotonic_us <= held.monotonic_us:
            return self
        return replace(self.stop_holding(at), held_since=at)
