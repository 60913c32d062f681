"""What ends an execution early: a cancel, a limit, a silent gateway, the device itself. Pure."""

from dataclasses import replace

from derops.lifecycle import Phase, Reason
from derops.modes import Mode
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Moment
from derops_agent.execution.acceptance import refuse_power, target
from derops_agent.execution.resolution import rounded
from derops_agent.execution.silence import Silence, count_to_last_answer
from derops_agent.execution.site import Site
from derops_agent.execution.state import Effect, Execution, Order, Stage
from derops_agent.execution.windows import Executions
from derops_agent.ports import Reading


def order_again(execution: Execution, order: Order, now: Moment) -> Execution:
    """Fold a repeated order into its execution; only its generation and a cancel count."""
    if order.generation < execution.observed_generation:
        return execution
    seen = replace(execution, observed_generation=order.generation)
    return cancel(seen, now, order.cancel_reason) if order.cancelled else seen


def cancel(execution: Execution, now: Moment, reason: str = "") -> Execution:
    """Withdraw it: at once if the device cannot hold it, else once the device is reverted."""
    match execution.stage:
        case Stage.WAITING | Stage.APPLYING:
            reason = reason or Reason.CANCELLED_BEFORE_START
        case Stage.HOLDING:
            reason = reason or Reason.CANCELLED_WHILE_ACTIVE
    return execution.withdraw(Phase.CANCELLED, reason, "withdrawn", now.wall_us)


def lose_contact(
    executions: Executions, now: Moment, failsafe_after_seconds: int
) -> dict[str, Execution]:
    """End all that own the device, because no gateway was heard for too long."""
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
    """Hold what was accepted to the present limits.

    What runs is clamped, or ends where the asset rejects. What waits is checked at its start.

    Args:
        executions: All.
        site: With the present limits.
        now: Both clocks.
        silence: Of the device; once a new value is written, nobody will know what it held before.
    """
    return {uid: _bind(execution, site, now, silence) for uid, execution in executions.items()}


def _bind(execution: Execution, site: Site, now: Moment, silence: Silence | None) -> Execution:
    if execution.stage not in (Stage.WAITING, Stage.APPLYING, Stage.HOLDING):
        return execution
    refusal = refuse_power(execution.order, site)
    if refusal is not None:
        message = f"not allowed any more: {refusal.message}"
        return (
            execution
            if execution.stage is Stage.WAITING
            else execution.withdraw(Phase.FAILED, refusal.reason, message, now.wall_us)
        )
    watts, clamped_by = target(execution.order, site.asset, site.local)
    if watts == execution.target_watts and execution.stage is Stage.HOLDING:
        return execution
    # While the agent did not run, the device may have been exchanged for one with other steps.
    execution = replace(execution, **rounded(execution.order.mode, watts, site.capability))
    if watts == execution.target_watts:
        return execution
    if silence is not None:
        execution = replace(count_to_last_answer(execution, silence), held_since=None)
    before = execution.effect
    return replace(
        execution,
        target_watts=watts,
        clamped_by=clamped_by,
        arrived_us=0,
        # What was measured so far was of another value.
        effect=Effect(
            last_sample_us=before.last_sample_us,
            within_us=before.within_us,
            delivered_watt_hours=before.delivered_watt_hours,
        ),
    )


def check_running(
    executions: Executions, reading: Reading, reserve_percent: int | None, now: Moment
) -> dict[str, Execution]:
    """End what must not go on: the device is in local control, or at its reserve."""
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


def check_points(executions: Executions, site: Site, now: Moment) -> dict[str, Execution]:
    """End what runs and needs a point that has been bad for too long, as a reserve does."""
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
