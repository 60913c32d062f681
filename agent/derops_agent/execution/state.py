"""One execution of a dispatch: what was ordered, where it stands and what the device did."""

from dataclasses import dataclass, replace
from enum import StrEnum

from derops.lifecycle import Phase
from derops.modes import Guard
from derops.schedules import Window
from derops.transitions import fold
from derops_agent.clock import Moment

LATE_REVERT_US = 10_000_000
"""A device that held its setpoint longer than this past the end has not completed as planned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A dispatch as it was received; the uid is the identity of the execution."""

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
    """It is to end as ``ending`` says, as soon as the device has been reverted."""

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
    """A steady instant, see ``Execution.steady_us``."""

    within_us: int = 0
    """Time within tolerance since the setpoint was applied."""

    judged_us: int = 0
    """Sampled time after settling."""

    good_us: int = 0
    """Of ``judged_us``, the part within tolerance."""

    in_a_row: int = 0
    """How many of the last samples were within tolerance, or, below 0, were not."""

    delivered_watt_hours: float | None = None
    told: str = ""
    """The verdict that was reported while the window was open; empty = none yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """All that is known; each change makes a new one."""

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
    """What is written: the ordered value within the limits."""

    clamped_by: str = ""
    sent_watts: int | None = None
    """What the device holds of ``target_watts``, as it says, or else by its steps; None = all."""

    rounding: str = ""
    """Why that is not ``target_watts``, in words; empty = it is."""

    arrived_us: int = 0
    """When the whole of it was written, a steady instant; later than ``applied_us`` by a ramp, 0
    before."""

    way_watts: int | None = None
    """What the device last said that it holds on the ramp to the whole of it; None = nothing."""

    held_since: Moment | None = None
    """Start of the interval in which the device holds it; None = it does not."""

    ends_monotonic_us: int = 0
    active_us: int = 0
    """Sum of the earlier intervals."""

    bridged_us: int = 0
    """How long past its end its value stays, because the next window is about to begin."""

    let_go_monotonic_us: int = 0
    """When the first write after its end succeeded; 0 before."""

    letting_go: Moment | None = None
    """The first write after its end, while the device does not show yet that it let go; None = no
    such write is waited for."""

    guard: str = Guard.AGENT_TIMER
    """What ends it if the agent dies: AgentTimer = only a restart of it, or DeviceTimer."""

    timer_ends_us: int = 0
    """When the device's own timer lets go of it, as last armed; 0 = none was armed."""

    sent: Moment | None = None
    """From when on the device may hold it, as a write of it was not answered or not taken at once:
    the first of these, or when the device last said that it did not; None = none may land yet."""

    blind: bool = False
    """Whether the device did not say, once it may have held it, what it held: it may have let go
    of it since."""

    confirmed: Moment | None = None
    """When the device last said that it holds it."""

    losses: int = 0
    """How often the device said that it holds something else, since it was applied."""

    interruptions: int = 0
    silences: int = 0
    """How often it was told that the device does not answer while it was to hold it."""

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
        """Whether the device holds it, or may hold it because it left a write unanswered."""
        unanswered = self.stage is Stage.APPLYING and self.sent is not None
        return self.stage in (Stage.HOLDING, Stage.REVERTING) or unanswered

    @property
    def is_doubtful(self) -> bool:
        """Whether it has ended, or is to, and nobody knows if the device took it."""
        ends = self.stage in (Stage.REVERTING, Stage.DONE)
        return ends and self.sent is not None and not self.applied_us

    @property
    def may_land(self) -> bool:
        """Whether it has ended, and the device may take it yet."""
        return self.stage is Stage.DONE and self.sent is not None

    def steady_us(self, at: Moment) -> int:
        """Return an instant by the wall clock as it was when the device took it.

        However that clock is set since, spans between two such instants are true.
        """
        if self.planned is None or not self.ends_monotonic_us:
            return at.wall_us
        return at.monotonic_us + self.planned.end_us - self.ends_monotonic_us

    @property
    def awaits_clock(self) -> bool:
        """Whether it ended as planned if its device was reverted in time, which is not known."""
        ending = self.ending
        return ending is not None and ending.phase is Phase.COMPLETE and not self.phase.terminal

    def step(self, phase: Phase, reason: str, message: str, at_us: int) -> "Execution":
        """Return it in a phase, with the transition recorded; only what is further along counts."""
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
        """Return it on its way to a terminal phase, which it takes once the device is reverted."""
        if self.stage in (Stage.REVERTING, Stage.DONE):
            return self
        ending = Step(phase=phase, reason=reason, message=message, at_us=at_us)
        return replace(self, stage=Stage.REVERTING, ending=ending, ended_us=at_us, pending_error="")

    def withdraw(self, phase: Phase, reason: str, message: str, at_us: int) -> "Execution":
        """End it: at once where the device cannot hold it, else as soon as that is reverted."""
        end = self.begin_ending if self.may_be_on_device else self.step
        return end(phase, reason, message, at_us)

    def stop_holding(self, at: Moment) -> "Execution":
        """Close the interval in which the device held it."""
        if self.held_since is None:
            return self
        held_us = max(0, at.monotonic_us - self.held_since.monotonic_us)
        return replace(self, held_since=None, active_us=self.active_us + held_us)

    def count_until(self, at: Moment | None) -> "Execution":
        """Count the time in which the device is known to have held it; it may hold it on."""
        held = self.held_since
        if held is None or at is None or at.monotonic_us <= held.monotonic_us:
            return self
        return replace(self.stop_holding(at), held_since=at)
