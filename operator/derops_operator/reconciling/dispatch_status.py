"""The status of a Dispatch: what is stored, and what report and gateways add to it.

Values are added, never taken away: a report of a lost ledger knows less than the status does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from derops.lifecycle import MESSAGE_LIMIT, Phase, Reason
from derops.modes import Evidence
from derops.transitions import Actor
from derops.wire.v1 import dispatch_pb2
from derops_operator.gateways.views import ReportedDispatch
from derops_operator.reconciling import conditions
from derops_operator.reconciling.dispatch_conditions import judge
from derops_operator.reconciling.outcomes import Outcome
from derops_operator.reconciling.wording import SENTENCES
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import format_instant, format_second

HISTORY_LIMIT = 20
"""Transitions that status keeps; the database keeps all."""

_INSTANTS = {
    "ackedAt": "accepted_us",
    "plannedStart": "planned_start_us",
    "plannedEnd": "planned_end_us",
    "appliedAt": "applied_us",
    "verifiedAt": "verified_us",
    "endedAt": "ended_us",
    "revertedAt": "reverted_us",
}


def timeline(dispatch: Dispatch, view: ReportedDispatch, submitted_us: int) -> dict[str, Any]:
    """Return ``status.timeline``; ``submitted_us`` is 0 while the dispatch waits for its asset."""
    times: dict[str, Any] = {
        "plannedStart": format_instant(dispatch.start_us),
        "plannedEnd": format_instant(dispatch.end_us),
        **dispatch.status.get("timeline", {}),
    }
    if submitted_us:
        times.setdefault("submittedAt", format_instant(submitted_us))
    if view.written_us:
        times.setdefault("sentAt", format_instant(view.written_us))
    report = view.report
    if report is None:
        return times
    for name, field in _INSTANTS.items():
        if getattr(report, field):
            times[name] = format_instant(getattr(report, field))
    if report.ended_us and not report.reverted_us:
        times.pop("revertedAt", None)  # what was reverted landed again
    if view.received_us:
        times["reportedAt"] = format_instant(view.received_us)
    if report.HasField("clock_offset_milliseconds"):
        times["clockOffsetMilliseconds"] = report.clock_offset_milliseconds
    return times


# Branches: one for each field that a report fills, or takes back.
def execution(dispatch: Dispatch, report: dispatch_pb2.DispatchReport | None) -> dict[str, Any]:
    """Return ``status.execution``."""
    known: dict[str, Any] = {
        **dispatch.status.get("execution", {}),
        "requested": {"mode": dispatch.mode, "watts": dispatch.watts},
    }
    if report is None:
        return known
    if report.HasField("applied_watts") and report.applied_us:
        known["applied"] = {"mode": dispatch.mode, "watts": report.applied_watts}
    if report.HasField("delivered_watt_hours"):
        known["deliveredWattHours"] = round(report.delivered_watt_hours)
    if report.applied_us:
        known["activeSeconds"] = round(report.active_milliseconds / 1000)
        known["withinToleranceSeconds"] = round(report.within_tolerance_milliseconds / 1000)
        known["interruptions"] = report.interruptions
    if known.get("evidence") == Evidence.UNANSWERED and report.ended_us and not report.evidence:
        del known["evidence"]  # asked since, the device said that it had not taken it
    if report.accepted_us and not report.clamped_by:
        known.pop("clampedBy", None)  # limits that were raised since
    if report.accepted_us and not report.rounding:
        known.pop("rounding", None)  # the same, and now the device holds the whole of it
    words = {
        "clampedBy": report.clamped_by,
        "rounding": report.rounding,
        "evidence": report.evidence,
    }
    return known | {name: text for name, text in words.items() if text}


def lineage(dispatch: Dispatch, report: dispatch_pb2.DispatchReport | None) -> dict[str, Any]:
    """Return the fields of status that a report fills one to one."""
    fields = {
        name: dispatch.status[name]
        for name in ("reversion", "supersededBy", "supersedes")
        if name in dispatch.status
    }
    if report is None:
        return fields
    if report.reversion_guard:
        fields["reversion"] = {"guard": report.reversion_guard}
        if report.planned_end_us:
            fields["reversion"]["deadline"] = format_instant(report.planned_end_us)
    if report.superseded_by:
        fields["supersededBy"] = report.superseded_by
    if report.supersedes:
        fields["supersedes"] = list(report.supersedes)
    return fields


def entry(phase: Phase, reason: str, message: str, at_us: int, actor: str) -> dict[str, Any]:
    """Return one line of ``status.history``."""
    return {
        "at": format_instant(at_us),
        "phase": str(phase),
        "reason": reason,
        "message": message[:MESSAGE_LIMIT],
        "actor": actor,
    }


def history(
    stored: Sequence[Mapping[str, Any]],
    own: list[dict[str, Any]],
    report: dispatch_pb2.DispatchReport | None,
) -> list[Mapping[str, Any]]:
    """Return the last transitions.

    ``own`` are steps of operator and gateways, each taken once however often it is offered; the
    agent's are told apart by their time, as it may pause and resume. Where ``own`` has the end, it
    is the one; the agent's is a late report.
    """
    taken = {(each["actor"], each["phase"]) for each in stored}
    new = [each for each in own if (each["actor"], each["phase"]) not in taken]
    starts = [each for each in new if not _is_end(each)]
    ends = [each for each in new if _is_end(each)]
    told = _agent_steps(stored, report, ended=any(_is_end(each) for each in own))
    return [*stored, *starts, *told, *ends][-HISTORY_LIMIT:]


def _agent_steps(
    stored: Sequence[Mapping[str, Any]],
    report: dispatch_pb2.DispatchReport | None,
    *,
    ended: bool,
) -> list[dict[str, Any]]:
    """Return the transitions of a report that are not stored; ``ended``: without its end."""
    seen = {(each["phase"], each["reason"], each["at"]) for each in stored}
    steps = [
        entry(Phase(each.phase), each.reason, each.message, each.at_us, Actor.AGENT)
        for each in (report.transitions if report is not None else ())
    ]
    return [
        each
        for each in steps
        if (each["phase"], each["reason"], each["at"]) not in seen and not (ended and _is_end(each))
    ]


def _is_end(step: Mapping[str, Any]) -> bool:
    return Phase(step["phase"]).terminal


def compose(
    dispatch: Dispatch, outcome: Outcome, view: ReportedDispatch, now_us: int, *, submitted: bool
) -> dict[str, Any]:
    """Return the whole status of a Dispatch that goes to ``outcome``.

    Args:
        dispatch: With its status as it is stored.
        outcome: Where it stands now.
        view: What the gateways know of it.
        now_us: The time.
        submitted: Whether gateways may hold it.
    """
    report = view.report
    known = now_us if dispatch.submitted_us is None else dispatch.submitted_us
    own = []
    if submitted:
        line = entry(
            Phase.SUBMITTED, Reason.VALIDATED, SENTENCES[Reason.VALIDATED], known, Actor.OPERATOR
        )
        own.append(line)
    if view.written_us:
        sentence = SENTENCES[Reason.DELIVERED]
        own.append(entry(Phase.SENT, Reason.DELIVERED, sentence, view.written_us, Actor.GATEWAY))
    if outcome.phase.terminal and outcome.actor == Actor.OPERATOR:
        own.append(
            entry(outcome.phase, outcome.reason, outcome.message, outcome.at_us, Actor.OPERATOR)
        )
    status: dict[str, Any] = {
        "phase": str(outcome.phase),
        "reason": str(outcome.reason),
        "message": outcome.message[:MESSAGE_LIMIT],
        "observedGeneration": dispatch.meta.generation,
        "timeline": timeline(dispatch, view, known if submitted else 0),
        "execution": execution(dispatch, report),
        **lineage(dispatch, report),
        "conditions": conditions.fold(
            dispatch.conditions,
            judge(dispatch, outcome, report, written=bool(view.written_us)),
            dispatch.meta.generation,
            now_us,
        ),
        "history": history(dispatch.history, own, report),
    }
    if outcome.phase.terminal:
        status["completionTime"] = format_second(now_us)
    return status
