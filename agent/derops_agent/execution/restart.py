"""What becomes of stored executions when the agent restarts. Pure."""

from dataclasses import replace

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence
from derops.schedules import SECOND_US
from derops_agent.clock import Moment
from derops_agent.execution import stages
from derops_agent.execution.state import LATE_REVERT_US, Execution, Stage
from derops_agent.execution.windows import is_over


def after_restart(execution: Execution, stored: Moment) -> Execution:
    """Return it with what is not known of it: nobody saw what the device did in the meantime.

    Args:
        execution: As it was stored, on this boot's monotonic clock.
        stored: When the agent last stored anything.
    """
    if execution.stage is Stage.APPLYING:  # stored because it was about to be written
        return replace(execution, sent=execution.sent or stored, blind=True)
    return replace(execution, blind=True) if execution.is_doubtful else execution


def resume(
    execution: Execution,
    now: Moment,
    *,
    revert: bool,
    held: bool | None,
    another: bool = False,
    last_held_us: int,
) -> Execution:
    """Decide what becomes of a stored execution when the agent starts.

    Args:
        execution: As it was stored, on this boot's monotonic clock.
        now: Both clocks, confirmed.
        revert: ``fallback.onRestart`` is Revert.
        held: Whether the device says that it holds the value; None = it does not say.
        another: Whether it says that it holds another one's value. It does not go back to such a
            value, so it never took this one.
        last_held_us: When the device is last known to have held it, by the wall clock; counts
            where ``held`` is False.
    """
    if execution.stage in (Stage.WAITING, Stage.DONE):
        return execution
    if execution.stage is Stage.APPLYING:
        execution = _settle_start(execution, now, held=held, another=another)
    if held is False:
        # Its own timer is the likeliest to have ended it, if it has run out since.
        if last_held_us < execution.timer_ends_us <= now.wall_us:
            last_held_us = execution.timer_ends_us
        execution = _stop_at(execution, now.back_to(last_held_us), now)
    if execution.stage is Stage.REVERTING:
        return execution
    return _go_on(execution, now, revert=revert)


def _settle_start(
    execution: Execution, now: Moment, *, held: bool | None, another: bool
) -> Execution:
    """Return a start that was about to be written with what the device says of it."""
    if held and execution.sent is not None:
        since = execution.sent
        found = stages.hold(replace(execution, blind=False), since, Evidence.READ_BACK)
        return replace(found, arrived_us=since.wall_us, confirmed=now)
    return replace(execution, blind=False) if another and not held else execution


def _go_on(execution: Execution, now: Moment, *, revert: bool) -> Execution:
    """Return it as one whose window goes on, or is over, or is ended by ``onRestart``."""
    if is_over(execution, now):
        return replace(execution, last_error="", last_message="")
    if revert:
        return execution.begin_ending(
            Phase.FAILED,
            Reason.AGENT_RESTARTED,
            "the agent restarted in the window and fallback.onRestart is Revert",
            now.wall_us,
        )
    if execution.stage is Stage.HOLDING:
        return replace(execution, interruptions=execution.interruptions + 1)
    return replace(execution, last_error="", last_message="")


def _stop_at(execution: Execution, at: Moment, now: Moment) -> Execution:
    """Return it as one that the device held until ``at``: its end, if its window is over."""
    known = execution.stop_holding(at)
    over = known.stage is Stage.REVERTING or (known.stage is Stage.HOLDING and is_over(known, now))
    if not over or known.let_go_monotonic_us:
        return known
    known = replace(known, let_go_monotonic_us=at.monotonic_us)
    short_us = known.ends_monotonic_us - at.monotonic_us
    if short_us <= LATE_REVERT_US:
        return known
    return known.begin_ending(
        Phase.FAILED,
        Reason.AGENT_RESTARTED,
        f"the agent restarted in the window and did not resume it before the end; the device is "
        f"last known to have held it {short_us / SECOND_US:.0f} s before the end, "
        f"{LATE_REVERT_US // SECOND_US} s are allowed",
        now.wall_us,
    )


def rebase(execution: Execution, now: Moment) -> Execution:
    """Return it with its monotonic instants on the clock of a new boot."""
    ahead_us = now.monotonic_us - now.wall_us

    def rebased(at: Moment | None) -> Moment | None:
        return at and Moment(wall_us=at.wall_us, monotonic_us=at.wall_us + ahead_us)

    return replace(
        execution,
        held_since=rebased(execution.held_since),
        sent=rebased(execution.sent),
        confirmed=rebased(execution.confirmed),
        letting_go=rebased(execution.letting_go),
        ends_monotonic_us=execution.planned.end_us + ahead_us if execution.planned else 0,
    )
