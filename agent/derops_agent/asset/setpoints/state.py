"""What one device was told, what it said of that, and what follows for the next write."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Self

from derops.modes import Guard
from derops.schedules import SECOND_US
from derops_agent.clock import Moment
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


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """What is known of one device; lost with the process. Times are of the monotonic clock.

    It is a value: whatever happens makes another one of it.
    """

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
    suspect_until_us: int
    """Until when something that was sent may land yet."""

    unanswered: int = 0
    """Questions in a row."""

    answered: Moment | None = None
    heard_us: int
    """When it last answered, or was first asked."""

    passed: Passed = field(default_factory=dict)
    """What it may show yet of what it held on the way, or before."""

    awaited: Awaited | None = None
    tries: Mapping[Setpoints, Tries] = field(default_factory=dict)
    since: Mapping[tuple[str, int], Moment] = field(default_factory=dict)
    """When each start was first written, by uid and watts, unless that is known to be void."""

    not_taken: Mapping[str, int] = field(default_factory=dict)
    """How often the device has not taken a start, whose predecessor is reverted first, by uid."""

    kept: frozenset[str] = frozenset()
    """Those to end that the device kept when it was told nothing else, by uid."""

    apart: bool = False
    """Starts are written one by one: the device refused several at once."""

    stuck: Mapping[str, str] = field(default_factory=dict)
    """What the device says of modes that it does not let go, in words."""

    stuck_us: int = 0
    """When it was first told something and did not take that, nor anything since, by the wall
    clock; 0 = it took the last."""

    unheld: str = ""
    """What the device says instead of taking its fallback, in words; empty = it took it."""

    @classmethod
    def begin(cls, now: Moment) -> Self:
        """Return it as of one that was asked now, and may take what an earlier process has sent."""
        return cls(heard_us=now.monotonic_us, suspect_until_us=now.monotonic_us + SUSPECT_US)

    def try_now(self) -> Self:
        """Write again what failed: why it did is over."""
        return replace(self, failures=0, retry_at_us=0)

    def note_answer(self, now: Moment) -> Self:
        """Note that the device answered, whatever it was asked."""
        state = self
        if self.unanswered >= _MISSED_LOOKS:
            state = replace(self.try_now(), look_at_us=0)
        return replace(state, answered=now, unanswered=0, heard_us=now.monotonic_us)

    def note_asked(self, held: Setpoints | None, now: Moment) -> Self:
        """Note that the device was asked what it holds, and said so or did not."""
        if held is None:
            return replace(self, unanswered=self.unanswered + 1)
        return self.note_answer(now)

    def silence(self, now: Moment) -> Silence | None:
        """Return what there is to say of a device that left more than one question unanswered."""
        silent_us = now.monotonic_us - self.heard_us
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

    def held_off_us(self, asset: AssetSpec | None, now: Moment) -> int:
        """Return for how long the device may not be given a new setpoint."""
        if asset is None or self.wrote_at_us is None:
            return 0
        until_us = self.wrote_at_us + asset.min_seconds_between_writes * SECOND_US
        return max(0, until_us - now.monotonic_us)

    def pauses(self, scope: Executions, asset: AssetSpec, now: Moment) -> bool:
        """Tell whether it is too soon for a start; an end is never too soon."""
        starts = claims.starting(windows.owners(scope))
        ends = any(e.stage is Stage.REVERTING for e in scope.values())
        return starts and not ends and self.held_off_us(asset, now) > 0

    def begin_anew(self, target: Setpoints, wanting: frozenset[str], scope: Executions) -> Self:
        """Begin to count, as nobody who wants this now has had it written."""
        kept = {told: tries for told, tries in self.tries.items() if tries.wanting & scope.keys()}
        return replace(self.try_now(), stuck={}, tries={**kept, target: Tries(wanting=wanting)})

    def with_tries(self, target: Setpoints, tries: Tries) -> Self:
        """Count the writes of ``target`` so."""
        return replace(self, tries={**self.tries, target: tries})

    def without_tries(self, target: Setpoints) -> Self:
        """Count the writes of ``target`` no more."""
        return replace(self, tries={told: n for told, n in self.tries.items() if told != target})

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
        now: Moment,
        *,
        pending: bool,
    ) -> Self:
        """Note that the device was told ``step`` on the way to ``target``.

        Args:
            step: What it was told.
            target: What it is to hold in the end.
            owners: Whose values these are, by mode.
            armed_seconds: When its own timer reverts it; None = it has none.
            now: Both clocks.
            pending: A start or an end was written, or what was dropped.
        """
        now_us = now.monotonic_us
        before = self.written.active_power_watts if self.written else None
        return replace(
            self,
            stepped_at_us=self.stepped_at_us if step.active_power_watts == before else now_us,
            ramping=step != target,
            written=step,
            failed=None,
            wrote_at_us=now_us if pending else self.wrote_at_us,
            look_at_us=now_us + LOOK_EVERY_US,
            timer_ends_us=now_us + armed_seconds * SECOND_US if armed_seconds else None,
            refresh_at_us=_refresh_at_us(owners, armed_seconds or 0, now),
            guard=Guard.DEVICE_TIMER if armed_seconds else Guard.AGENT_TIMER,
        )

    def without_refresh(self) -> Self:
        """Leave the device's own timer: nobody knows what it would keep."""
        return replace(self, refresh_at_us=None)

    def note_prolonged(self, armed_seconds: int | None, now: Moment) -> Self:
        """Note that the device was to hold on, and whether its timer was set for that."""
        now_us = now.monotonic_us
        if not armed_seconds:
            return replace(self, refresh_at_us=now_us + patience.LEAST_RETRY_US)
        return replace(
            self,
            refresh_at_us=now_us + armed_seconds * SECOND_US // 2,
            timer_ends_us=now_us + armed_seconds * SECOND_US,
        )

    def note_starting(self, scope: Executions, wrote: Moment) -> Self:
        """Note when the starts that own a mode were written, unless they were before."""
        owners = windows.owners(scope)
        starting = [e for e in owners.values() if e.stage is Stage.APPLYING]
        keys = {(e.order.uid, e.target_watts) for e in starting}
        return replace(self, since={key: self.since.get(key, wrote) for key in keys})

    def forget_starting(self, wrote: Moment) -> Self:
        """Note that the starts that were first written then may not have been taken by that."""
        return replace(self, since={key: at for key, at in self.since.items() if at != wrote})

    def stay(self, told: Setpoints, held: Setpoints, modes: Collection[str]) -> Self:
        """Note that the device shows ``modes`` as they were, and not what it was ``told`` last.

        That is written again, as the last step on the way.
        """
        names = [VALUES[mode] for mode in modes]
        written = replace(told, **{name: getattr(held, name) for name in names})
        return replace(self, written=written, held=held, ramping=True)

    def note_silence(self, owners: Executions, now: Moment, *, has_timer: bool) -> Self:
        """Note that the device acted and did not answer: nobody knows to what its timer is set."""
        now_us = now.monotonic_us
        refresh_at_us = now_us + LOOK_EVERY_US if has_timer and owners else self.refresh_at_us
        return replace(self, suspect_until_us=now_us + SUSPECT_US, refresh_at_us=refresh_at_us)

    def note_released(self, released: Setpoints) -> Self:
        """Note that the device holds nothing but its limits, by whomever these are."""
        return replace(self, written=released, held=released, failed=None, failures=0)

    def try_again(self, scope: Executions, setpoints: Setpoints, now: Moment) -> Self:
        """Note that ``setpoints`` are not on the device, and when they are tried again."""
        applying = any(e.stage is Stage.APPLYING for e in scope.values())
        most_us = patience.LEAST_RETRY_US if applying else _REVERT_RETRY_US
        return replace(
            self,
            # Whatever was on the device before, nobody knows what is there now.
            written=None,
            failed=setpoints,
            failures=self.failures + 1,
            retry_at_us=now.monotonic_us + min(most_us, _FIRST_RETRY_US << min(self.failures, 16)),
        )


def _refresh_at_us(owners: Executions, armed_seconds: int, now: Moment) -> int | None:
    """Return when a timer that was set now is to be set again; None = it runs long enough."""
    ends_us = [e.planned.end_us for e in owners.values() if e.planned]
    if not armed_seconds or not ends_us:
        return None
    runs_out_us = now.wall_us + armed_seconds * SECOND_US
    # What ended may have to stay until the next window.
    if runs_out_us >= min(ends_us) + windows.GAP_TOLERANCE_US + SECOND_US:
        return None
    return now.monotonic_us + armed_seconds * SECOND_US // 2
