"""What ends an execution early, or picks it up again: a cancel, silence, the device, a restart."""

from dataclasses import replace

from derops.lifecycle import Phase, Reason
from derops.modes import Evidence, Mode
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Moment
from derops_agent.execution import readback
from derops_agent.execution.acceptance import refuse_power, target
from derops_agent.execution.resolution import rounded
from derops_agent.execution.silence import Silence, claim_no_more
from derops_agent.execution.site import Site
from derops_agent.execution.state import LATE_REVERT_US, Effect, Execution, Order, Stage
from derops_agent.execution.windows import Executions, is_over
from derops_agent.ports import Reading


def order_again(execution: Execution, order: Order, now: Moment) -> Execution:
    """Fold a repeated order into its execution: only the generation and a cancel count."""
    if order.generation < execution.observed_generation:
        return execution
    seen = replace(execution, observed_generation=order.generation)
    return cancel(seen, now, order.cancel_reason) if order.cancelled else seen


def cancel(execution: Execution, now: Moment, reason: str = "") -> Execution:
    """Withdraw it: at once if the device was never touched, else when it is reverted."""
    match execution.stage:
        case Stage.WAITING | Stage.APPLYING:
            reason = reason or Reason.CANCELLED_BEFORE_START
        case Stage.HOLDING:
            reason = reason or Reason.CANCELLED_WHILE_ACTIVE
    return execution.withdraw(Phase.CANCELLED, reason, "withdrawn", now.wall_us)


def lose_contact(
    executions: Executions, now: Moment, failsafe_after_seconds: int
) -> dict[str, Execution]:
    """End all that the device holds because the headend was silent for too long."""
    return {
        uid: execution.withdraw(
            Phase.FAILED,
            Reason.COMMS_LOSS_FAILSAFE,
            f"no gateway was heard for {failsafe_after_seconds} s (fallback.failsafeAfterSeconds)",
            now.wall_us,
        )
        if execution.owns_device
        else execution
        for uid, execution in executions.items()
    }


def bind(
    executions: Executions, site: Site, now: Moment, silence: Silence | None = None
) -> dict[str, Execution]:
    """Hold what was accepted to limits that may have changed since.

    What runs is clamped, or ends where the asset rejects; what waits is looked at at its start.

    Args:
        executions: All.
        site: With the limits as they are now.
        now: Both clocks.
        silence: Of the device: once it is written over, nobody will know what it held until then.
    """
    return {uid: _bind(execution, site, now, silence) for uid, execution in executions.items()}


def _bind(execution: Execution, site: Site, now: Moment, silence: Silence | None) -> Execution:
    if execution.stage not in (Stage.WAITING, Stage.APPLYING, Stage.HOLDING):
        return execution
    refusal = refuse_power(execution.order, site)
    if refusal is not None:
        message = f"by the limits as they are now: {refusal.message}"
        return (
            execution
            if execution.stage is Stage.WAITING
            else execution.withdraw(Phase.FAILED, refusal.reason, message, now.wall_us)
        )
    watts, clamped_by = target(execution.order, site.asset, site.local)
    if watts == execution.target_watts and execution.stage is Stage.HOLDING:
        return execution
    # The device may have been exchanged for one with other steps while the agent did not run.
    execution = replace(execution, **rounded(execution.order.mode, watts, site.capability))
    if watts == execution.target_watts:
        return execution
    if silence is not None:
        execution = replace(claim_no_more(execution, silence), held_since=None)
    before = execution.effect
    return replace(
        execution,
        target_watts=watts,
        clamped_by=clamped_by,
        arrived_us=0,
        # What was measured was of another value.
        effect=Effect(
            last_sample_us=before.last_sample_us,
            within_us=before.within_us,
            delivered_watt_hours=before.delivered_watt_hours,
        ),
    )


def endure(
    executions: Executions, reading: Reading, reserve_percent: int | None, now: Moment
) -> dict[str, Execution]:
    """End what must not go on: the device is in local control, or the reserve is reached."""
    charge = reading.values.get(agent_pb2.Quantity.STATE_OF_CHARGE_PERCENT)
    result = {}
    for uid, execution in executions.items():
        result[uid] = execution
        if execution.stage is not Stage.HOLDING:
            continue
        discharging = execution.order.mode == Mode.ACTIVE_POWER and execution.target_watts > 0
        if reading.local_control:
            result[uid] = execution.begin_ending(
                Phase.FAILED,
                Reason.LOCAL_OVERRIDE,
                "somebody on site switched the device to local control",
                now.wall_us,
            )
        elif (
            discharging
            and charge is not None
            and reserve_percent is not None
            and charge <= reserve_percent
        ):
            result[uid] = execution.begin_ending(
                Phase.FAILED,
                Reason.INSUFFICIENT_ENERGY,
                f"the state of charge of {charge:.1f} % has reached the reserve of "
                f"{reserve_percent} % (minReservePercent)",
                now.wall_us,
            )
    return result


def miss_points(executions: Executions, site: Site, now: Moment) -> dict[str, Execution]:
    """End what runs and needs a point that is bad for too long: a reserve is not kept blindly."""
    result = dict(executions)
    for uid, execution in executions.items():
        order = execution.order
        if execution.stage is not Stage.HOLDING:
            continue
        use = site.use_of(order.mode, execution.target_watts, verify_required=order.verify_required)
        absence = site.explain_absence(use, running=True)
        if absence:
            result[uid] = execution.begin_ending(
                Phase.FAILED, Reason.STALE_TELEMETRY, absence, now.wall_us
            )
    return result


def awake(execution: Execution, stored: Moment) -> Execution:
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
        execution = _let_go(execution, now.back_to(last_held_us), now)
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


def _let_go(execution: Execution, at: Moment, now: Moment) -> Execution:
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
