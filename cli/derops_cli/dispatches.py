"""Why a Dispatch did not do what it should: which part of its way stopped it. Pure.

The way is order, operator, stream, agent, device. A phase and a reason say where it stands; where
the reason is missing because nobody answered, the time and the asset's stream do.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from derops.lifecycle import Phase, Reason
from derops.resources.base import Condition
from derops.resources.derassets import DERAsset
from derops.resources.dispatches import Dispatch
from derops_cli.asset_links import condition_of
from derops_cli.causes import Place
from derops_cli.diagnosis import Cause, Finding, Verdict
from derops_cli.evidence import Missing
from derops_cli.words import clean, duration, instant


class Stop(StrEnum):
    """Where a dispatch was stopped."""

    ORDER = "Order"
    """What was asked for: it is beyond a limit, too late, or withdrawn."""

    OPERATOR = "Operator"
    STREAM = "Stream"
    AGENT = "Agent"
    DEVICE = "Device"


STOP_OF: dict[Reason, Stop] = {
    Reason.VALIDATED: Stop.STREAM,
    Reason.ASSET_NOT_FOUND: Stop.ORDER,
    Reason.DELIVERED: Stop.AGENT,
    Reason.ACCEPTED: Stop.AGENT,
    Reason.APPLIED: Stop.DEVICE,
    Reason.WINDOW_ENDED: Stop.DEVICE,
    Reason.LIMIT_EXCEEDED: Stop.ORDER,
    Reason.LOCAL_LIMIT_EXCEEDED: Stop.AGENT,
    Reason.MODE_NOT_SUPPORTED: Stop.ORDER,
    Reason.NOT_REPRESENTABLE: Stop.DEVICE,
    Reason.INVALID_SCHEDULE: Stop.ORDER,
    Reason.ASSET_OUT_OF_SERVICE: Stop.ORDER,
    Reason.ASSET_QUARANTINED: Stop.ORDER,
    Reason.ASSET_DELETED: Stop.ORDER,
    Reason.CANNOT_VERIFY: Stop.DEVICE,
    Reason.CLOCK_SKEW_TOO_LARGE: Stop.AGENT,
    Reason.START_DEADLINE_EXCEEDED: Stop.AGENT,
    Reason.AGENT_OFFLINE: Stop.STREAM,
    Reason.CANCELLED_BEFORE_DELIVERY: Stop.ORDER,
    Reason.CANCELLED_BEFORE_START: Stop.ORDER,
    Reason.CANCELLED_WHILE_ACTIVE: Stop.ORDER,
    Reason.SUPERSEDED_BY: Stop.ORDER,
    Reason.INSUFFICIENT_ENERGY: Stop.DEVICE,
    Reason.RATE_LIMITED: Stop.AGENT,
    Reason.STALE_TELEMETRY: Stop.DEVICE,
    Reason.LOCAL_CONTROL_ACTIVE: Stop.DEVICE,
    Reason.LOCAL_OVERRIDE: Stop.DEVICE,
    Reason.READ_BACK_MISMATCH: Stop.DEVICE,
    Reason.SETPOINT_NOT_HELD: Stop.DEVICE,
    Reason.DEVICE_WRITE_FAILED: Stop.DEVICE,
    Reason.DEVICE_OFFLINE: Stop.DEVICE,
    Reason.EFFECT_NOT_OBSERVED: Stop.DEVICE,
    Reason.COMMS_LOSS_FAILSAFE: Stop.STREAM,
    Reason.AGENT_RESTARTED: Stop.AGENT,
    Reason.REVERTED_LATE: Stop.AGENT,
    Reason.REVERT_FAILED: Stop.DEVICE,
    Reason.LEDGER_LOST: Stop.AGENT,
    Reason.OUTCOME_UNKNOWN: Stop.STREAM,
}
"""Where each reason says that a dispatch stands, or was stopped."""

AS_ORDERED = frozenset(
    {
        Reason.CANCELLED_BEFORE_DELIVERY,
        Reason.CANCELLED_BEFORE_START,
        Reason.CANCELLED_WHILE_ACTIVE,
        Reason.SUPERSEDED_BY,
    }
)
"""Reasons of an end that somebody ordered."""

REASONS_PAGE = "docs/reference/reasons.md"
LATE_SECONDS = 30
"""How late a step may be told before that is a fault."""

_DESCRIBE = "{kubectl} describe dispatch {dispatch} -n {ns}"
_ASSET = "{kubectl} derops diagnose {asset} -n {ns}"
_SPEC = "{kubectl} get derasset {asset} -n {ns} -o yaml"
_OPERATOR = "{kubectl} logs -n {system} deploy/derops-operator --since=10m --tail=30"
_GATEWAY = "{kubectl} logs -n {system} derops-headend-0 -c gateway --since=10m --tail=30"
_COMMANDS: dict[Stop, tuple[tuple[str, str], ...]] = {
    Stop.ORDER: (
        ("what was asked for, and what came of it", _DESCRIBE),
        ("what the asset allows, and in which state it is", _SPEC),
    ),
    Stop.OPERATOR: (
        ("whether the operator runs, and what it says", _OPERATOR),
        ("the installation", "{kubectl} derops diagnose"),
    ),
    Stop.STREAM: (
        ("whether the agent is connected, and why not", _ASSET),
        ("what the gateway says of its agent", _GATEWAY),
    ),
    Stop.AGENT: (
        ("what the agent answered", _DESCRIBE),
        ("what the agent says itself", "docker logs --tail 30 derops-agent  # at the site"),
    ),
    Stop.DEVICE: (
        ("what the device answered, in the agent's words", _DESCRIBE),
        ("what is wrong with the device", "{kubectl} describe derasset {asset} -n {ns}"),
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchDiagnosis:
    """Where a dispatch stands, and what stopped it."""

    name: str
    namespace: str
    asset: str
    verdict: Verdict
    phase: str
    reason: str
    message: str
    stop: str = ""
    """Where it stopped, or what it waits for; empty = nowhere."""

    why: str = ""
    findings: tuple[Finding, ...] = ()
    causes: tuple[Cause, ...] = ()
    runbook: str = ""
    missing: tuple[Missing, ...] = ()


def diagnose_dispatch(
    dispatch: Dispatch, asset: DERAsset | Missing, at: datetime, place: Place
) -> DispatchDiagnosis:
    """Return why a dispatch is where it is.

    Args:
        dispatch: It.
        asset: Its asset.
        at: Now, by the API server's clock.
        place: What the commands are for; its asset is that of the dispatch.
    """
    status = dispatch.status
    verdict, stop, why = _judge(dispatch, asset, at)
    return DispatchDiagnosis(
        name=dispatch.metadata.name,
        namespace=dispatch.metadata.namespace,
        asset=dispatch.spec.asset_ref.name,
        verdict=verdict,
        phase=status.phase,
        reason=clean(status.reason or ""),
        message=clean(status.message or ""),
        stop=stop or "",
        why=why,
        findings=tuple(_findings(dispatch, asset, at)),
        causes=_causes(dispatch.metadata.name, stop, place) if verdict is Verdict.BROKEN else (),
        runbook=REASONS_PAGE if verdict is Verdict.BROKEN else "",
        missing=(asset,) if isinstance(asset, Missing) and not asset.absent else (),
    )


def _judge(
    dispatch: Dispatch, asset: DERAsset | Missing, at: datetime
) -> tuple[Verdict, Stop | None, str]:
    status = dispatch.status
    reverted = _condition(dispatch, "Reverted")
    if status.phase.terminal and reverted is not None and reverted.status == "False":
        why = f"it has ended, and the device is not reverted: {clean(reverted.message)}"
        return Verdict.BROKEN, Stop.DEVICE, why
    if status.phase is Phase.COMPLETE or status.reason in AS_ORDERED:
        verified = _condition(dispatch, "Verified")
        if verified is not None and verified.status == "False":
            why = f"it ran, and the power did not follow: {clean(verified.message)}"
            return Verdict.BROKEN, Stop.DEVICE, why
        return Verdict.FLOWS, None, "it did what was ordered"
    if status.phase.terminal:
        return Verdict.BROKEN, _stop_of(status.reason), clean(status.message or "")
    return _judge_running(dispatch, asset, at)


def _judge_running(
    dispatch: Dispatch, asset: DERAsset | Missing, at: datetime
) -> tuple[Verdict, Stop | None, str]:
    """Return where a dispatch stands that has not ended: on its way, or too late for a step."""
    status, spec = dispatch.status, dispatch.spec
    start = spec.start_time or dispatch.metadata.creation_timestamp
    if status.observed_generation < 0:
        made = dispatch.metadata.creation_timestamp
        late = at > made + timedelta(seconds=LATE_SECONDS)
        why = f"the operator has not looked at it since it was made at {instant(made)}"
        return (Verdict.BROKEN if late else Verdict.FLOWS), Stop.OPERATOR, why
    if status.phase in (Phase.SUBMITTED, Phase.SENT):
        return _judge_undelivered(dispatch, asset, start, at)
    return _judge_delivered(dispatch, start, at)


def _judge_delivered(
    dispatch: Dispatch, start: datetime, at: datetime
) -> tuple[Verdict, Stop | None, str]:
    phase = dispatch.status.phase
    end = start + timedelta(seconds=dispatch.spec.duration_seconds)
    slack = timedelta(seconds=LATE_SECONDS)
    if phase is Phase.ACKED and at > start + slack:
        applied = _condition(dispatch, "Applied")
        words = clean(applied.message) if applied is not None else "the agent has not reported it"
        return Verdict.BROKEN, Stop.DEVICE, f"its start has come, and it is not applied: {words}"
    if phase is Phase.ACTIVE and at > end + slack:
        why = f"its window ended at {instant(end)}, and the agent has not reported the end"
        return Verdict.BROKEN, Stop.STREAM, why
    verified = _condition(dispatch, "Verified")
    if phase is Phase.ACTIVE and verified is not None and verified.status == "False":
        why = f"it runs, and the power does not follow: {clean(verified.message)}"
        return Verdict.BROKEN, Stop.DEVICE, why
    return Verdict.FLOWS, None, "it is on its way, and nothing is late"


def _judge_undelivered(
    dispatch: Dispatch, asset: DERAsset | Missing, start: datetime, at: datetime
) -> tuple[Verdict, Stop | None, str]:
    reason = dispatch.status.reason
    if reason == Reason.ASSET_NOT_FOUND:
        return Verdict.BROKEN, Stop.ORDER, clean(dispatch.status.message or "")
    made = dispatch.metadata.creation_timestamp
    connected = None if isinstance(asset, Missing) else condition_of(asset, "Connected")
    if connected is not None and connected.status != "True":
        accept_by = start + timedelta(seconds=dispatch.spec.accept_within_seconds)
        why = (
            f"the agent of its asset has no stream ({clean(connected.message)}); it is delivered "
            f"once it has, until {instant(accept_by)}"
        )
        return Verdict.BROKEN, Stop.STREAM, why
    if at > made + timedelta(seconds=LATE_SECONDS):
        stop = Stop.AGENT if dispatch.status.phase is Phase.SENT else Stop.STREAM
        waited = duration((at - made).total_seconds())
        return Verdict.BROKEN, stop, f"it was made {waited} ago, and the agent has not answered"
    return Verdict.FLOWS, None, "it is on its way, and nothing is late"


def _stop_of(reason: str | None) -> Stop:
    return STOP_OF[Reason(reason)] if reason in set(Reason) else Stop.AGENT


def _condition(dispatch: Dispatch, kind: str) -> Condition | None:
    return next((each for each in dispatch.status.conditions if each.type == kind), None)


def _findings(dispatch: Dispatch, asset: DERAsset | Missing, at: datetime) -> Sequence[Finding]:
    spec, status = dispatch.spec, dispatch.status
    start = spec.start_time or dispatch.metadata.creation_timestamp
    found = [
        Finding(what="order", value=f"{spec.setpoint.mode}, {spec.setpoint.watts} W"),
        Finding(what="start", value=instant(start)),
        Finding(what="duration", value=f"{spec.duration_seconds} s"),
    ]
    found += [
        Finding(
            what=f"condition {each.type}",
            value=_words(each),
            age_seconds=(at - each.last_transition_time).total_seconds(),
        )
        for each in status.conditions
        if each.type in ("Delivered", "Accepted", "Applied", "Verified", "Reverted")
    ]
    for kind in ("Connected", "DataFlowing", "DeviceSilent"):
        seen = None if isinstance(asset, Missing) else condition_of(asset, kind)
        if seen is not None:
            found.append(Finding(what=f"asset: condition {kind}", value=_words(seen)))
    return found


def _words(condition: Condition) -> str:
    message = f": {clean(condition.message)}" if condition.message else ""
    return f"{condition.status}, {clean(condition.reason)}{message}"


def _causes(dispatch: str, stop: Stop | None, place: Place) -> tuple[Cause, ...]:
    return tuple(
        Cause(words, place.fill(command, dispatch=dispatch))
        for words, command in _COMMANDS[stop or Stop.AGENT]
    )
