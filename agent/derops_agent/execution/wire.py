"""Wire messages to values of the domain, and back."""

from derops.lifecycle import MESSAGE_LIMIT
from derops.log_fields import read_request_id
from derops.modes import Evidence
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent.execution.site import AssetSpec
from derops_agent.execution.state import Execution, Order
from derops_agent.ports import Capability, Setpoints

_MAY_LAND = (
    "the device did not answer a write of it, or did not take it at once, and it may land yet; "
    "the agent asks the device, and reverts what lands"
)


def read_order(message: dispatch_pb2.Dispatch) -> Order:
    """Return a received dispatch as an order."""
    return Order(
        uid=message.uid,
        asset_uid=message.asset_uid,
        generation=message.generation,
        mode=message.setpoint.mode,
        watts=message.setpoint.watts,
        start_us=message.start_us,
        duration_seconds=message.duration_seconds,
        start_deadline_seconds=message.start_deadline_seconds,
        late_policy=message.late_policy,
        randomize_start_seconds=message.randomize_start_seconds,
        primacy=message.primacy,
        verify_required=message.verify == "Required",
        cancelled=message.cancelled,
        cancel_reason=message.cancel_reason,
        known_phase=message.known_phase,
        created_us=message.created_us,
        other_ledger_id=message.other_ledger_id,
        name=message.name,
        request_id=read_request_id(message.request_id),
    )


def read_asset(message: dispatch_pb2.Asset) -> AssetSpec:
    """Return what an agent needs of an asset's configuration."""

    def optional(field: str) -> int | None:
        return getattr(message, field) if message.HasField(field) else None

    return AssetSpec(
        uid=message.id.uid,
        generation=message.generation,
        type=message.type,
        max_injection_watts=message.limit_max_injection_watts,
        max_absorption_watts=message.limit_max_absorption_watts,
        max_dispatch_duration_seconds=message.max_dispatch_duration_seconds,
        fallback=Setpoints(
            active_power_watts=optional("fallback_active_power_watts"),
            max_generation_watts=optional("fallback_max_generation_watts"),
            max_load_watts=optional("fallback_max_load_watts"),
        ),
        revert_on_comms_loss=message.on_comms_loss == "Revert",
        failsafe_after_seconds=message.failsafe_after_seconds,
        revert_on_restart=message.on_restart == "Revert",
        telemetry_interval_seconds=max(1, message.telemetry_interval_seconds),
        operating_state=message.operating_state,
        clamp=message.on_exceed == "Clamp",
        energy_capacity_watt_hours=message.energy_capacity_watt_hours,
        max_ramp_watts_per_second=optional("max_ramp_watts_per_second") or None,
        min_reserve_percent=optional("min_reserve_percent"),
        min_seconds_between_writes=message.min_seconds_between_writes,
        tolerance_watts=optional("verification_tolerance_watts"),
        tolerance_percent=optional("verification_tolerance_percent"),
        settle_seconds=optional("verification_settle_seconds"),
        samples=optional("verification_samples") or None,
    )


def write_capability(capability: Capability) -> agent_pb2.Capability:
    """Return what the device can do, as Hello says it."""
    return agent_pb2.Capability(
        modes=sorted(capability.modes),
        driver=capability.driver,
        firmware=capability.firmware,
        max_injection_watts=capability.max_injection_watts,
        max_absorption_watts=capability.max_absorption_watts,
    )


# Branches: a flat list of fields; some are empty until something has happened.
def write_report(
    execution: Execution,
    *,
    sequence: int,
    ledger_id: str,
    clock_offset_milliseconds: int | None,
) -> dispatch_pb2.DispatchReport:
    """Return the report of an execution: everything that is known of it.

    A message may quote a device at any length; it is cut to what status has room for.
    """
    planned = execution.planned
    report = dispatch_pb2.DispatchReport(
        sequence=sequence,
        ledger_id=ledger_id,
        dispatch_uid=execution.order.uid,
        observed_generation=execution.observed_generation,
        phase=execution.phase,
        reason=execution.reason,
        message=execution.message[:MESSAGE_LIMIT],
        transitions=[
            dispatch_pb2.Transition(
                phase=step.phase,
                reason=step.reason,
                message=step.message[:MESSAGE_LIMIT],
                at_us=step.at_us,
            )
            for step in execution.steps
        ],
        accepted_us=execution.accepted_us,
        planned_start_us=planned.start_us if planned and execution.accepted_us else 0,
        planned_end_us=planned.end_us if planned and execution.accepted_us else 0,
        applied_us=execution.applied_us,
        ended_us=execution.ended_us,
        reverted_us=execution.reverted_us,
        verified_us=execution.verified_us,
        clamped_by=execution.clamped_by,
        active_milliseconds=execution.active_us // 1000,
        within_tolerance_milliseconds=execution.effect.within_us // 1000,
        delivered_watt_hours=execution.effect.delivered_watt_hours,
        evidence=execution.evidence
        or Evidence.UNANSWERED * bool(execution.sent and execution.blind),
        verified=execution.verified,
        verified_reason=execution.verified_reason,
        interruptions=execution.interruptions,
        reversion_guard=execution.guard if execution.accepted_us else "",
        superseded_by=execution.superseded_by,
        supersedes=execution.supersedes,
        clock_offset_milliseconds=clock_offset_milliseconds,
        pending_error=(execution.pending_error or _MAY_LAND * execution.may_land)[:MESSAGE_LIMIT],
    )
    if execution.applied_us:
        report.applied_watts, report.rounding = _applied(execution)
    return report


def _applied(execution: Execution) -> tuple[int, str]:
    """Return what the device held of it, in watts, and in words why that is not all of it.

    A window may end before its ramp has arrived.
    """
    sent_watts, way_watts = execution.sent_watts, execution.way_watts
    watts = execution.target_watts if sent_watts is None else sent_watts
    arrived = execution.arrived_us or not execution.ended_us
    if arrived or way_watts is None or way_watts == watts:
        return watts, execution.rounding
    words = f"the ramp had come to {way_watts} W of {watts} W at the end"
    return way_watts, f"{execution.rounding}; {words}" if execution.rounding else words
