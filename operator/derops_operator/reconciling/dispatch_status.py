"""What an agent's report, and the gateways, add to the status of a Dispatch.

Values are added, never taken away: a report of a lost ledger knows less than the status does.
"""

from collections.abc import Mapping
from typing import Any

from derops.lifecycle import MESSAGE_LIMIT, Phase
from derops.modes import Evidence
from derops.wire.v1 import dispatch_pb2
from derops_operator.gateways.replicas import ReportedDispatch
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import format_instant

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
    stored: list[Mapping[str, Any]],
    own: list[dict[str, Any]],
    report: dispatch_pb2.DispatchReport | None,
) -> list[Mapping[str, Any]]:
    """Return the last transitions.

    ``own`` are steps of operator and gateways, each taken once however often it is offered; the
    agent's are told apart by their time, as it may pause and resume. Where ``own`` has the end, it
    is the one; the agent's is a late report.
    """
    steps = list(stored)
    taken = {(each["actor"], each["phase"]) for each in stored}
    ends = [each for each in own if Phase(each["phase"]).terminal]
    starts = [each for each in own if each not in ends]
    steps += [each for each in starts if (each["actor"], each["phase"]) not in taken]
    seen = {(each["phase"], each["reason"], each["at"]) for each in stored}
    for step in report.transitions if report is not None else ():
        line = entry(Phase(step.phase), step.reason, step.message, step.at_us, "Agent")
        if ends and Phase(step.phase).terminal:
            continue
        if (line["phase"], line["reason"], line["at"]) not in seen:
            steps.append(line)
    steps += [each for each in ends if (each["actor"], each["phase"]) not in taken]
    return steps[-HISTORY_LIMIT:]


def late_report(dispatch: Dispatch, view: ReportedDispatch) -> dict[str, Any] | None:
    """Return what a report says that the frozen status does not, or None.

    Where the headend ended the dispatch, any word of the agent that status does not have is news;
    where the agent did, only a different ending is.
    """
    report = view.report
    if report is None or not report.phase:
        return None
    status, phase = dispatch.status, Phase(report.phase)
    if (report.phase, report.reason) == (status.get("phase"), status.get("reason")):
        return None
    lines = status.get("history", [])
    ended_by = next((str(e["actor"]) for e in reversed(lines) if Phase(e["phase"]).terminal), "")
    heard = any((e["phase"], e["reason"]) == (report.phase, report.reason) for e in lines)
    if not phase.terminal and (ended_by == "Agent" or heard):
        return None
    at_us = report.transitions[-1].at_us if report.transitions else view.received_us
    return {
        "phase": report.phase,
        "reason": report.reason,
        "message": report.message[:MESSAGE_LIMIT],
        "at": format_instant(at_us),
    }
