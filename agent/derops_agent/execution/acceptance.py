"""Whether the agent accepts an order. It trusts nobody and checks everything again. Pure."""

from dataclasses import dataclass, replace

from derops.checks import MODES_BY_TYPE, Envelope, Refusal, check_dispatch
from derops.lifecycle import Phase, Reason
from derops.modes import Mode, OperatingState
from derops.schedules import SECOND_US, Window, accept_by_us, plan_window
from derops_agent.execution.resolution import refuse_value, rounded
from derops_agent.execution.site import AssetSpec, LocalLimits, Site
from derops_agent.execution.state import Execution, Order, Stage

_MAX_DURATION_SECONDS = 604_800
_SOON_US = 60 * SECOND_US  # so far ahead, a device's present state says something about the start


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    phase: Phase
    reason: str
    message: str


def judge(order: Order, site: Site, *, now_us: int, draw: float) -> Execution:
    """Answer an order that this ledger does not know: accept or refuse it.

    Args:
        order: As it was received.
        site: What it is judged against.
        now_us: The wall clock.
        draw: 0 ≤ draw < 1, decides the randomised start.
    """
    planned = plan_window(
        start_us=order.start_us,
        duration_seconds=order.duration_seconds,
        late_policy=order.late_policy,
        offset_seconds=int(draw * (max(0, order.randomize_start_seconds) + 1)),
        now_us=now_us,
    )
    answer = (
        _refuse_history(order)
        or _refuse_clock(order, site, now_us)
        or _refuse_order(order, site)
        or _refuse_now(order, site, planned, now_us)
    )
    if answer is None and planned.end_us <= now_us:
        answer = _Answer(
            phase=Phase.EXPIRED,
            reason=Reason.START_DEADLINE_EXCEEDED,
            message=(
                f"received {(now_us - planned.end_us) / SECOND_US:.1f} s after the end of its "
                f"window ({(planned.end_us - order.start_us) / SECOND_US:g} s after the start)"
            ),
        )
    new = Execution(
        order=order,
        phase=Phase.SENT,
        stage=Stage.WAITING,
        reason="",
        observed_generation=order.generation,
    )
    if answer is not None:
        return new.step(answer.phase, answer.reason, answer.message, now_us)
    watts, clamped_by = target(order, site.asset, site.local)
    held = rounded(order.mode, watts, site.capability)
    message = "checked and stored"
    if held["rounding"]:
        message = f"{message}; it will be {held['sent_watts']} W: {held['rounding']}"
    accepted = new.step(Phase.ACKED, Reason.ACCEPTED, message, now_us)
    return replace(
        accepted,
        accepted_us=now_us,
        planned=planned,
        target_watts=watts,
        clamped_by=clamped_by,
        **held,
    )


def target(order: Order, asset: AssetSpec | None, local: LocalLimits) -> tuple[int, str]:
    """Return the watts to write, and which limits changed them; empty = none did."""
    watts, clamped_by = order.watts, ""
    if order.mode == Mode.ACTIVE_POWER and asset is not None and asset.clamp:
        watts = max(-asset.max_absorption_watts, min(watts, asset.max_injection_watts))
        clamped_by = "AssetLimits" if watts != order.watts else ""
    bounds: dict[str, int] = {
        Mode.ACTIVE_POWER: local.bound(watts),
        Mode.GENERATION_LIMIT: _least(watts, local.max_injection_watts),
        Mode.LOAD_LIMIT: _least(watts, local.max_absorption_watts),
    }
    local_bound = bounds.get(order.mode, watts)
    return (watts, clamped_by) if local_bound == watts else (local_bound, "LocalLimits")


def refuse_power(order: Order, site: Site) -> Refusal | None:
    """Return why the asset's present limits do not allow an order's power, or None."""
    asset = site.asset
    if asset is None:
        return None
    watts, _ = target(order, asset, LocalLimits())
    envelope = Envelope(
        max_injection_watts=asset.max_injection_watts,
        max_absorption_watts=asset.max_absorption_watts,
        max_dispatch_duration_seconds=order.duration_seconds,
        modes=frozenset({order.mode}),
        owner="the asset's limits",
    )
    return check_dispatch(
        mode=order.mode,
        watts=watts,
        duration_seconds=order.duration_seconds,
        envelope=envelope,
    ) or refuse_rounding(order, site)


def refuse_rounding(order: Order, site: Site) -> Refusal | None:
    """Return why the device cannot hold what an order asks for within all limits, or None."""
    watts, _ = target(order, site.asset, site.local)
    tolerance_watts = site.rule.tolerance_for(order.mode, watts)
    return refuse_value(order.mode, watts, site.capability, tolerance_watts)


def _refuse_history(order: Order) -> _Answer | None:
    # First of all: an order that may have run before this ledger is never run again.
    if order.known_phase and Phase(order.known_phase).rank >= Phase.ACKED.rank:
        return _Answer(
            phase=Phase.FAILED,
            reason=Reason.LEDGER_LOST,
            message=(
                f"it was {order.known_phase} before this ledger was made; it is not run again, "
                f"order it anew"
            ),
        )
    if order.other_ledger_id:
        return _Answer(
            phase=Phase.FAILED,
            reason=Reason.LEDGER_LOST,
            message=(
                f"ledger {order.other_ledger_id} had it first, is gone and may have run it; it is "
                f"not run again, order it anew"
            ),
        )
    if order.cancelled:
        return _Answer(
            phase=Phase.CANCELLED,
            reason=order.cancel_reason or Reason.CANCELLED_BEFORE_START,
            message="withdrawn before it was accepted",
        )
    return None


def _refuse_clock(order: Order, site: Site, now_us: int) -> _Answer | None:
    offset = site.clock_offset_milliseconds
    if offset is not None and abs(offset) > site.max_clock_offset_milliseconds:
        limit = site.max_clock_offset_milliseconds
        return _rejected(
            Reason.CLOCK_SKEW_TOO_LARGE,
            f"the clocks of agent and gateway differ by {offset} ms, {limit} ms are allowed; "
            f"synchronise them",
        )
    late_us = now_us - accept_by_us(order.start_us, order.start_deadline_seconds)
    if late_us > 0:
        return _Answer(
            phase=Phase.EXPIRED,
            reason=Reason.START_DEADLINE_EXCEEDED,
            message=(
                f"received {late_us / SECOND_US:.1f} s after the start deadline "
                f"({order.start_deadline_seconds} s after the start)"
            ),
        )
    return None


def _refuse_order(order: Order, site: Site) -> _Answer | None:
    """Refuse what asset, limits or device will not allow, whenever it starts."""
    asset = site.asset
    if asset is None or order.asset_uid != asset.uid:
        return _rejected(Reason.ASSET_NOT_FOUND, "the order is for another asset than this one")
    if asset.operating_state == OperatingState.OUT_OF_SERVICE:
        return _rejected(Reason.ASSET_OUT_OF_SERVICE, "the asset is out of service")
    if asset.operating_state == OperatingState.QUARANTINED:
        return _rejected(Reason.ASSET_QUARANTINED, "the asset is quarantined")
    return _refuse_values(order, asset, site) or _refuse_verification(order, site)


def _refuse_values(order: Order, asset: AssetSpec, site: Site) -> _Answer | None:
    if not 1 <= order.duration_seconds <= _MAX_DURATION_SECONDS:
        return _rejected(
            Reason.INVALID_SCHEDULE,
            f"the duration of {order.duration_seconds} s is not within 1 s to "
            f"{_MAX_DURATION_SECONDS} s",
        )
    if order.mode != Mode.ACTIVE_POWER and order.watts < 0:
        return _rejected(
            Reason.LIMIT_EXCEEDED, f"{order.mode} takes no negative value; got {order.watts} W"
        )
    refusal = _check_envelopes(order, asset, site)
    return None if refusal is None else _rejected(refusal.reason, refusal.message)


def _refuse_verification(order: Order, site: Site) -> _Answer | None:
    if not order.verify_required:
        return None
    if not site.capability.can_measure:
        return _rejected(Reason.CANNOT_VERIFY, site.explain_no_power())
    settle_seconds = site.rule.settle_us / SECOND_US
    if order.duration_seconds <= settle_seconds:
        return _rejected(
            Reason.CANNOT_VERIFY,
            f"the window of {order.duration_seconds} s is not longer than the {settle_seconds:g} s "
            f"that the device takes to settle; make it longer, or do not require verification",
        )
    return None


def _refuse_now(order: Order, site: Site, planned: Window, now_us: int) -> _Answer | None:
    """Refuse what the device's state forbids; what starts later is checked again at its start."""
    deadline_us = accept_by_us(planned.start_us, order.start_deadline_seconds)
    if site.next_write_us > deadline_us:
        pause_seconds = site.asset.min_seconds_between_writes if site.asset else 0
        wait_seconds = (site.next_write_us - now_us) / SECOND_US
        return _rejected(
            Reason.RATE_LIMITED,
            f"the device takes its next setpoint in {wait_seconds:.0f} s "
            f"(minSecondsBetweenWrites {pause_seconds} s), after the start deadline",
        )
    watts, _ = target(order, site.asset, site.local)
    seconds = (planned.end_us - planned.start_us) / SECOND_US
    refusal = (
        site.refuse_start(order.mode, watts, seconds, verify_required=order.verify_required)
        if planned.start_us - now_us <= _SOON_US
        else site.refuse_energy(watts, seconds, None)
        if order.mode == Mode.ACTIVE_POWER
        else None
    )
    return None if refusal is None else _rejected(refusal.reason, refusal.message)


def _check_envelopes(order: Order, asset: AssetSpec, site: Site) -> Refusal | None:
    modes = MODES_BY_TYPE.get(asset.type, frozenset()) & site.capability.modes
    clamped, _ = target(order, asset, LocalLimits())
    for injection, absorption, owner in (
        (asset.max_injection_watts, asset.max_absorption_watts, "the asset's limits"),
        (
            site.capability.max_injection_watts,
            site.capability.max_absorption_watts,
            "the device's rating",
        ),
    ):
        refusal = check_dispatch(
            mode=order.mode,
            watts=clamped,
            duration_seconds=order.duration_seconds,
            envelope=Envelope(
                max_injection_watts=injection,
                max_absorption_watts=absorption,
                max_dispatch_duration_seconds=asset.max_dispatch_duration_seconds,
                modes=modes,
                owner=owner,
            ),
        )
        if refusal is not None:
            return refusal
    if order.mode == Mode.ACTIVE_POWER and site.local.bound(clamped) != clamped:
        return Refusal(
            reason=Reason.LOCAL_LIMIT_EXCEEDED,
            message=(
                f"{clamped} W is beyond the agent's own limits "
                f"(nearest allowed: {site.local.bound(clamped)} W)"
            ),
        )
    return refuse_rounding(order, site)


def _rejected(reason: Reason, message: str) -> _Answer:
    return _Answer(phase=Phase.REJECTED, reason=reason, message=message)


def _least(watts: int, limit: int | None) -> int:
    return watts if limit is None else min(watts, limit)
