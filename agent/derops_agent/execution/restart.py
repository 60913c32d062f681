"""What a restart of the agent makes of what it had stored. Pure."""

from dataclasses import replace

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence
from derops.schedules import SECOND_US
from derops_agent.clock import Moment
from derops_agent.execution import readback
from derops_agent.execution.state import LATE_REVERT_US, Execution, Stage
from derops_agent.execution.windows import is_over


def after_restart(execution: Execution, stored: Moment) -> Execution:
    """Return what was stored as what is known of it now: nobody saw what its device did since.

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
        held: Whether the device says that it holds the value, None if it does not say.
        another: It says that it holds the value of another one, which it cannot have gone back to.
        last_held_us: The last time that the device is known to have held it, if it does no more.
    """
    if execution.stage in (Stage.WAITING, Stage.DONE):
        return execution
    if held and execution.stage is Stage.APPLYING and execution.sent is not None:
        since = execution.sent
        found = readback.hold(replace(execution, blind=False), since, Evidence.READ_BACK)
        execution = replace(found, arrived_us=since.wall_us, confirmed=now)
    if another and not held and execution.stage is Stage.APPLYING:
        execution = replace(execution, blind=False)
    if held is False:
        # Its own timer is the likeliest to have ended it, if it has run out since.
        if last_held_us < execution.timer_ends_us <= now.wall_us:
            last_held_us = execution.timer_ends_us
        execution = _stop_at(execution, now.back_to(last_held_us), now)
    if execution.stage is Stage.REVERTING:
        return execution
    if revert and not is_over(execution, now):
        return execution.begin_ending(
            Phase.FAILED,
            Reason.AGENT_RESTARTED,
            "the agent restarted in the window and fallback.onRestart is Revert",
            now.wall_us,
        )
    if execution.stage is Stage.HOLDING and not is_over(execution, now):
        return replace(execution, interruptions=execution.interruptions + 1)
    return replace(execution, last_error="", last_message="")


def _stop_at(execution: Execution, at: Moment, now: Moment) -> Execution:
    """Return it as one that the device held until then; that ended it if its window is over."""
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
        f"the agent restarted in the window and did not take it up again before its end; the "
        f"device is known to have held it until {short_us / SECOND_US:.0f} s before",
        now.wall_us,
    )


def rebase(execution: Execution, now: Moment) -> Execution:
    """Return it with its monotonic instants on the clock of a new boot."""
    ahead_us = now.monotonic_us - now.wall_us

    def moved(at: Moment | None) -> Moment | None:
        return at and Moment(wall_us=at.wall_us, monotonic_us=at.wall_us + ahead_us)

    return replace(
        execution,
        held_since=moved(execution.held_since),
        sent=moved(execution.sent),
        confirmed=moved(execution.confirmed),
        letting_go=moved(execution.letting_go),
        ends_monotonic_us=execution.planned.end_us + ahead_us if execution.planned else 0,
    )
