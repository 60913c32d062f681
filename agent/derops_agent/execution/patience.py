"""Patience with a device that shows its writes late: for what, how long, how often. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from derops.lifecycle import Reason
from derops.modes import Mode
from derops.schedules import SECOND_US
from derops_agent.clock import Moment
from derops_agent.execution import readback, windows
from derops_agent.execution.site import Site
from derops_agent.execution.state import Stage
from derops_agent.execution.unconfirmed import WriteFailure
from derops_agent.execution.windows import Executions
from derops_agent.ports import VALUES, ReadBack, Setpoints

WORN_RETRY_SECONDS = 600
"""How long after ``most_writes`` the agent waits before it writes the same once more."""

LEAST_RETRY_US = 1 * SECOND_US
"""How soon the same is written again at the earliest."""

Passed = Mapping[str, frozenset[int]]
"""Values in watts that a device may still show although it was told others since, by mode."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Awaited:
    """A write that the device took, and does not show yet."""

    step: Setpoints
    target: Setpoints
    wrote: Moment
    """Since when the device has it, if it took it."""

    first_us: int
    """When it was first written, by the monotonic clock: patience counts from there."""

    wanting: frozenset[str]
    """Uids of those whose start, end or loss it was written for, and the device does not show."""

    starting: frozenset[str]
    """Of these, the ones that were to start."""

    modes: frozenset[str] = frozenset()
    """Modes that the device does not show yet."""

    shown: Mapping[str, str] = field(default_factory=dict)
    """What the device last said of these, in words; empty = it was not asked yet."""

    behind: Mapping[str, str] = field(default_factory=dict)
    """The same, of the modes that the device may still show as they were before."""

    ask_at_us: int
    """When the device is asked next, by the monotonic clock."""

    failure: WriteFailure | None = None
    """What became of the write, if the device did not answer it."""

    timer_ends_us: int | None = None
    """When the device's own timer runs out if it has not taken this."""

    shows_nothing: bool = False
    """Whether it is a step of a ramp that also a device shows which does not take the setpoint."""

    is_over: bool = False
    """Whether patience ran out; the device is asked on until it is written again."""


@dataclass(frozen=True, slots=True)
class Tries:
    """How often one setpoint was written for the same executions."""

    wanting: frozenset[str] = frozenset()
    writes: int = 0
    last_us: int = 0


def wrong_modes(
    scope: Executions, wanted: Setpoints, held: Setpoints | None, site: Site
) -> dict[str, str]:
    """Return the modes of which the device shows something else than was written, with words."""
    if held is None:
        return {}
    modes, wanted = set(site.mismatches(wanted, held)), site.sent(wanted)
    for execution in scope.values():
        # A released value is not compared, but one that is to end must not still be there.
        kept = site.holds(held, execution) and not site.holds(wanted, execution)
        if execution.stage is Stage.REVERTING and kept:
            modes.add(execution.order.mode)
    told = "released it" if wanted == Setpoints() else f"wrote {wanted}"
    return dict.fromkeys(modes, f"{told}, the device says that it holds {held}")


def passed(
    known: Passed, before: Setpoints | None, held: Setpoints | None, step: Setpoints, site: Site
) -> dict[str, frozenset[int]]:
    """Return which values a device may still show once it is told another one than ``step``.

    Args:
        known: Such values since the device last showed all that it was told.
        before: What it was told before; None = nobody knows.
        held: What it then said that it holds.
        step: What it is told now.
        site: For what it can hold.

    Returns:
        Values in watts, by mode.
    """
    wanted, told = site.sent(step), None if before is None else site.sent(before)
    result = {}
    for mode in VALUES:
        values = {wanted.of(mode)}
        if told is not None and told.of(mode) not in values and held is not None:
            values.add(held.of(mode))
        result[mode] = known.get(mode, frozenset()) | {each for each in values if each is not None}
    return result


def behind(known: Passed, step: Setpoints, held: Setpoints, site: Site) -> dict[str, str]:
    """Return the modes of which a device shows just what it held before, with the words for it.

    However near to ``step`` that is, it does not show that the device took ``step``.
    """
    wanted = site.sent(step)
    return {
        mode: f"wrote {wanted}, the device says that it holds {held}, as before"
        for mode, values in known.items()
        if held.of(mode) in values - {wanted.of(mode)}
    }


def again_after_us(read_back: ReadBack, writes: int) -> int:
    """Return how long after the last of ``writes`` writes the same may be written again.

    Args:
        read_back: How the device is to be asked.
        writes: Those that count; 0 as 1, as there was one whose answer nobody knows.
    """
    if writes >= read_back.most_writes:
        return WORN_RETRY_SECONDS * SECOND_US
    # Longer each time: fewer writes outlast a longer trouble.
    wait_us = round(read_back.patience_seconds * SECOND_US) << max(0, writes - 1)
    return min(max(wait_us, LEAST_RETRY_US), WORN_RETRY_SECONDS * SECOND_US)


def written_again(before: Awaited, again: Awaited) -> Awaited:
    """Return a write that only repeats ``before`` as what is waited for.

    What the device did not confirm then it may not have taken: that counts from ``again``.
    """
    return replace(
        again,
        wrote=before.wrote if before.failure is None else again.wrote,
        first_us=before.first_us,
        ask_at_us=before.first_us + again.ask_at_us - again.first_us,
        modes=before.modes,
        shown=before.shown,
        behind=before.behind,
    )


def explained(failure: WriteFailure | None, otherwise: Reason) -> Reason:
    """Return the reason for a start that the device does not show; ``otherwise`` if it answered."""
    if failure is None:
        return otherwise
    return Reason.DEVICE_OFFLINE if failure.is_silence else Reason.READ_BACK_MISMATCH


def explain_wait(read_back: ReadBack) -> str:
    """Return for how long a device is asked, in words."""
    return (
        f"the agent asks again for {read_back.patience_seconds:g} s after the write, then writes "
        f"again"
    )


def ran_out(awaited: Awaited, writes: int, now: Moment) -> Moment | None:
    """Return when the device's own timer did what the writes before did not; None = it did not.

    Args:
        awaited: The write that the device shows now.
        writes: How often the same was written.
        now: Both clocks.
    """
    ends_us = awaited.timer_ends_us
    if ends_us is None or writes <= 1:
        return None
    if not awaited.wrote.monotonic_us < ends_us <= now.monotonic_us:
        return None
    return now.back(now.monotonic_us - ends_us)


def not_known_by(awaited: Awaited, executions: Executions) -> Executions:
    """Return the start, or the dropped one, about which a step of its ramp shows nothing."""
    owner = windows.owners(executions).get(Mode.ACTIVE_POWER)
    if not awaited.shows_nothing or owner is None or owner.held_since is not None:
        return {}
    if owner.last_error == Reason.DEVICE_OFFLINE:
        owner = replace(owner, last_error="")  # it answers, and shows what was written
    words = (
        f"the ramp has come to {awaited.step.active_power_watts} W, where the device does not show "
        f"yet whether it takes the setpoint"
    )
    waiting = readback.await_read_back(
        {owner.order.uid: owner},
        {Mode.ACTIVE_POWER},
        awaited.wrote,
        Reason.START_DEADLINE_EXCEEDED,
        words,
    )
    return {owner.order.uid: waiting.get(owner.order.uid, owner)}
