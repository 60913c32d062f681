"""What one device was told, what it said of that, and what follows for the next write."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace

from derops.modes import Guard
from derops.schedules import SECOND_US
from derops_agent.clock import Clock, Moment, moment
from derops_agent.execution import claims, patience, windows
from derops_agent.execution.patience import Awaited, Passed, Tries
from derops_agent.execution.silence import Silence
from derops_agent.execution.site import AssetSpec
from derops_agent.execution.state import Stage
from derops_agent.execution.windows import Executions
from derops_agent.ports import VALUES, Setpoints

LOOK_EVERY_US = 5 * SECOND_US
"""How often a device that holds a setpoint is asked whether it still does."""

SUSPECT_US = 120 * SECOND_US
"""For how long a write that was not answered may still land."""

_MISSED_LOOKS = 2
_FIRST_RETRY_US = 250_000
_REVERT_RETRY_US = 60 * SECOND_US


@dataclass(slots=True, kw_only=True)
class DeviceState:
    """What is known of one device; lost with the process. Times are of the monotonic clock."""

    clock: Clock
    written: Setpoints | None = None
    """What it was told last; None = nobody knows what is there now."""

    held: Setpoints | None = None
    """What it then said that it holds."""

    failed: Setpoints | None = None
    """What it was told in vain."""

    failures: int = 0
    """In a row, without an answer or refused."""

    retry_at_us: int = 0
    wrote_at_us: int | None = None
    """When a start or end was last written."""

    stepped_at_us: int | None = None
    """When the active power was last changed."""

    ramping: bool = False
    """``written`` is a step on the way."""

    guard: str = Guard.AGENT_TIMER
    refresh_at_us: int | None = None
    """When the device's own timer is to be set again."""

    timer_ends_us: int | None = None
    """When that runs out."""

    look_at_us: int = 0
    suspect_until_us: int = 0
    """Until when something that was sent may land yet."""

    unanswered: int = 0
    """Questions in a row."""

    answered: Moment | None = None
    heard_us: int = 0
    """When it last answered, or was first asked."""

    passed: Passed = field(default_factory=dict)
    """What it may show yet of what it held on the way, or before."""

    awaited: Awaited | None = None
    tries: dict[Setpoints, Tries] = field(default_factory=dict)
    since: dict[tuple[str, int], Moment] = field(default_factory=dict)
    """When each start was first written, by uid and watts, unless that is known to be void."""

    not_taken: dict[str, int] = field(default_factory=dict)
    """How often the device has not taken a start, whose predecessor is reverted first, by uid."""

    kept: set[str] = field(default_factory=set)
    """Those to end that the device kept when it was told nothing else, by uid."""

    apart: bool = False
    """Starts are written one by one: the device refused several at once."""

    stuck: dict[str, str] = field(default_factory=dict)
    """What the device says of modes that it does not let go, in words."""

    stuck_us: int = 0
    """When it was first told something and did not take that, nor anything since, by the wall
    clock; 0 = it took the last."""

    unheld: str = ""
    """What the device says instead of taking its fallback, in words; empty = it took it."""

    def __post_init__(self) -> None:
        """Begin as one that was asked now, and that may take what an earlier process has sent."""
        self.heard_us = self.clock.monotonic_us()
        self.suspect_until_us = self.heard_us + SUSPECT_US

    def try_now(self) -> None:
        """Write again what failed: why it did is over."""
        self.failures, self.retry_at_us = 0, 0

    def note_answer(self) -> None:
        """Note that the device answered, whatever it was asked."""
        if self.unanswered >= _MISSED_LOOKS:
            self.look_at_us = 0
            self.try_now()
        self.answered = moment(self.clock)
        self.unanswered, self.heard_us = 0, self.answered.monotonic_us

    @property
    def silence(self) -> Silence | None:
        """What there is to say of a device that left more than one question without an answer."""
        silent_us = self.clock.monotonic_us() - self.heard_us
        if self.unanswered < _MISSED_LOOKS or silent_us < _MISSED_LOOKS * LOOK_EVERY_US:
            return None
        return Silence(since_us=self.heard_us, last_answer=self.answered)

    @property
    def starts_awaited(self) -> frozenset[str]:
        """Starts that were written a moment ago, and that the device may show yet, by uid."""
        awaited = self.awaited
        begun = frozenset(uid for uid, _ in self.since) if self.ramping else frozenset()
        if awaited is None or awaited.is_over:
            return begun
        return awaited.starting | begun

    def displaced(self, scope: Executions) -> frozenset[str]:
        """Return those over which a start was written that the device does not show yet, by uid."""
        awaited = self.awaited
        if awaited is None or awaited.is_over:
            return frozenset()
        starting = awaited.starting & scope.keys()
        modes = {scope[uid].order.mode for uid in starting} & awaited.modes
        return frozenset(u for u, e in scope.items() if e.order.mode in modes) - starting

    def held_off_us(self, asset: AssetSpec | None) -> int:
        """Return for how long the device may not be given a new setpoint."""
        if asset is None or self.wrote_at_us is None:
            return 0
        until_us = self.wrote_at_us + asset.min_seconds_between_writes * SECOND_US
        return max(0, until_us - self.clock.monotonic_us())

    def pauses(self, scope: Executions, asset: AssetSpec) -> bool:
        """Tell whether it is too soon for a start; an end is never too soon."""
        starts = claims.starting(windows.owners(scope))
        ends = any(e.stage is Stage.REVERTING for e in scope.values())
        return starts and not ends and self.held_off_us(asset) > 0

    def begin_anew(self, target: Setpoints, wanting: frozenset[str], scope: Executions) -> None:
        """Begin to count, as nobody who wants this now has had it written."""
        self.failures, self.retry_at_us = 0, 0
        self.stuck = {}
        self.tries = {
            setpoints: tries
            for setpoints, tries in self.tries.items()
            if tries.wanting & scope.keys()
        }
        self.tries[target] = Tries(wanting=wanting)

    def timer_ends_at(self, now: Moment) -> int:
        """Return when the device's own timer runs out, by the wall clock; 0 = none runs."""
        if self.timer_ends_us is None:
            return 0
        return now.wall_us + self.timer_ends_us - now.monotonic_us

    def note_write(
        self,
        step: Setpoints,
        target: Setpoints,
        owners: Executions,
        armed_seconds: int | None,
        *,
        pending: bool,
    ) -> None:
        """Note that the device was told ``step`` on the way to ``target``.

        Args:
            step: What it was told.
            target: What it is to hold in the end.
            owners: Whose values these are, by mode.
            armed_seconds: When its own timer reverts it; None = it has none.
            pending: A start or an end was written, or what was dropped.
        """
        now_us = self.clock.monotonic_us()
        before = self.written.active_power_watts if self.written else None
        if step.active_power_watts != before:
            self.stepped_at_us = now_us
        self.ramping = step != target
        self.written, self.failed = step, None
        if pending:
            self.wrote_at_us = now_us
        self.look_at_us = now_us + LOOK_EVERY_US
        self.timer_ends_us = now_us + armed_seconds * SECOND_US if armed_seconds else None
        self.refresh_at_us = self._refresh_at_us(owners, armed_seconds or 0)
        self.guard = Guard.DEVICE_TIMER if armed_seconds else Guard.AGENT_TIMER

    def _refresh_at_us(self, owners: Executions, armed_seconds: int) -> int | None:
        """Return when a timer that was set now is to be set again; None = it runs long enough."""
        ends_us = [e.planned.end_us for e in owners.values() if e.planned]
        if not armed_seconds or not ends_us:
            return None
        runs_out_us = self.clock.now_us() + armed_seconds * SECOND_US
        # What ended may have to stay until the next window.
        if runs_out_us >= min(ends_us) + windows.GAP_TOLERANCE_US + SECOND_US:
            return None
        return self.clock.monotonic_us() + armed_seconds * SECOND_US // 2

    def note_starting(self, scope: Executions, wrote: Moment) -> None:
        """Note when the starts that own a mode were written, unless they were before."""
        owners = windows.owners(scope)
        starting = [e for e in owners.values() if e.stage is Stage.APPLYING]
        keys = {(e.order.uid, e.target_watts) for e in starting}
        self.since = {key: self.since.get(key, wrote) for key in keys}

    def forget_starting(self, wrote: Moment) -> None:
        """Note that the starts that were first written then may not have been taken by that."""
        self.since = {key: at for key, at in self.since.items() if at != wrote}

    def stay(self, told: Setpoints, held: Setpoints, modes: Collection[str]) -> None:
        """Note that the device shows ``modes`` as they were, and not what it was ``told`` last.

        That is written again, as the last step on the way.
        """
        names = [VALUES[mode] for mode in modes]
        self.written = replace(told, **{name: getattr(held, name) for name in names})
        self.held, self.ramping = held, True

    def note_silence(self, owners: Executions, *, has_timer: bool) -> None:
        """Note that the device acted and did not answer: nobody knows to what its timer is set."""
        now_us = self.clock.monotonic_us()
        self.suspect_until_us = now_us + SUSPECT_US
        if has_timer and owners:
            self.refresh_at_us = now_us + LOOK_EVERY_US

    def try_again(self, scope: Executions, setpoints: Setpoints) -> int:
        """Note that ``setpoints`` are not on the device; return when it is tried again, in us."""
        applying = any(e.stage is Stage.APPLYING for e in scope.values())
        most_us = patience.LEAST_RETRY_US if applying else _REVERT_RETRY_US
        delay_us = min(most_us, _FIRST_RETRY_US << min(self.failures, 16))
        # Whatever was on the device before, nobody knows what is there now.
        self.written, self.failed = None, setpoints
        self.failures += 1
        self.retry_at_us = self.clock.monotonic_us() + delay_us
        return delay_us
