"""What is shown, as blocks that a terminal and a plain file both can show; and as JSON. Pure.

The JSON is a promise: fields are only added, see docs/reference/cli.md.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from derops.instants import format_instant
from derops_cli.diagnosis import OPERATOR, Diagnosis, Finding, LinkJudgement, Standing, Verdict
from derops_cli.dispatches import DispatchDiagnosis
from derops_cli.evidence import Missing
from derops_cli.fleet import Fleet
from derops_cli.timeline import Entry
from derops_cli.words import duration, instant

API_VERSION = "cli.derops.io/v1"
MARK = "->"
"""Stands before the first broken link."""


class Tone(StrEnum):
    """How much something asks for attention."""

    PLAIN = "plain"
    GOOD = "good"
    BAD = "bad"
    DIM = "dim"


@dataclass(frozen=True, slots=True)
class Heading:
    """One line that says what it is about."""

    text: str
    tone: Tone = Tone.PLAIN


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; a row has one tone."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Tone, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines as they are, such as commands to paste."""

    lines: tuple[str, ...]


Block = Heading | Table | Lines

_STANDING = {
    Standing.HOLDS: ("holds", Tone.GOOD),
    Standing.BROKEN: ("broken", Tone.BAD),
    Standing.NOT_LOOKED_AT: ("not looked at", Tone.DIM),
}
_VERDICT = {
    Verdict.FLOWS: ("data flows", Tone.GOOD),
    Verdict.NOTHING_FOUND: ("no broken link among those looked at", Tone.PLAIN),
    Verdict.BROKEN: ("broken", Tone.BAD),
    Verdict.NOT_LOOKED_AT: ("nothing could be judged", Tone.DIM),
}


def page_of(diagnosis: Diagnosis) -> list[Block]:
    """Return a diagnosis of an asset, or of the installation, as it is shown."""
    subject = (
        f"{diagnosis.subject} in {diagnosis.namespace}" if diagnosis.subject else "installation"
    )
    words, tone = _VERDICT[diagnosis.verdict]
    if diagnosis.verdict is Verdict.BROKEN:
        at = f" at {diagnosis.first_broken}" if diagnosis.first_broken else ""
        words = f"{words}{at}: {diagnosis.reason}"
    rows = [
        row
        for each in (diagnosis.operator, *diagnosis.links)
        for row in _link_rows(each, first=each.link == diagnosis.first_broken)
    ]
    return [
        Heading(f"{subject}: {words}", tone),
        Table(("", "LINK", "STATE", "WHY AND EVIDENCE", "AGE", "LIMIT"), tuple(rows)),
        *_rest(diagnosis.causes, diagnosis.runbook, diagnosis.notes, diagnosis.missing),
    ]


def page_of_dispatch(diagnosis: DispatchDiagnosis) -> list[Block]:
    """Return why a dispatch is where it is, as it is shown."""
    good = diagnosis.verdict is not Verdict.BROKEN
    reason = f" ({diagnosis.reason})" if diagnosis.reason else ""
    words = f"dispatch {diagnosis.name} in {diagnosis.namespace}: {diagnosis.phase}{reason}"
    lines = [diagnosis.why]
    if diagnosis.message and diagnosis.message != diagnosis.why:
        lines.append(f"status.message: {diagnosis.message}")
    if diagnosis.stop and not good:
        lines.insert(0, f"{MARK} stopped at: {diagnosis.stop}")
    rows = tuple((Tone.PLAIN, ("", *_cells(each))) for each in diagnosis.findings)
    return [
        Heading(words, Tone.GOOD if good else Tone.BAD),
        Lines(tuple(lines)),
        Table(("", "EVIDENCE", "AGE", "LIMIT"), rows),
        *_rest(diagnosis.causes, diagnosis.runbook, (), diagnosis.missing),
    ]


def page_of_fleet(fleet: Fleet) -> list[Block]:
    """Return counts as they are shown."""
    place = f"in {fleet.within}" if fleet.within else "in all namespaces"
    blocks: list[Block] = [Heading(f"{fleet.assets} assets {place}, by DataFlowing")]
    blocks.append(_counts("REASON", fleet.by_reason.items()))
    if fleet.worst:
        rows = tuple(
            (Tone.BAD, ("", each.namespace, f"{each.broken} of {each.assets}"))
            for each in fleet.worst
        )
        blocks.append(Table(("", "WORST NAMESPACES", "WITHOUT DATA"), rows))
    if fleet.dispatches is not None:
        blocks += [Heading("dispatches, by phase"), _counts("PHASE", fleet.dispatches.items())]
    return [*blocks, *_missing(fleet.missing)]


def page_of_timeline(
    name: str, entries: Iterable[Entry], missing: Sequence[Missing]
) -> list[Block]:
    """Return a timeline as it is shown."""
    rows = tuple(
        (Tone.PLAIN, (instant(each.at), each.source, each.about, each.what)) for each in entries
    )
    columns = ("TIME (UTC)", "FROM", "ABOUT", "WHAT")
    body: list[Block] = [Table(columns, rows)] if rows else [Lines(("nothing is known",))]
    return [Heading(f"timeline of {name}"), *body, *_missing(missing)]


def _counts(name: str, counts: Iterable[tuple[str, int]]) -> Table:
    return Table(
        ("", name, "COUNT"), tuple((Tone.PLAIN, ("", word, str(count))) for word, count in counts)
    )


def _link_rows(judged: LinkJudgement, *, first: bool) -> Iterator[tuple[Tone, tuple[str, ...]]]:
    words, tone = _STANDING[judged.standing]
    why = judged.why
    if judged.reason and not why.startswith(judged.reason):
        why = f"{judged.reason}: {why}"
    yield tone, (MARK if first else "", judged.link, words, why, "", "")
    for finding in judged.findings:
        yield Tone.DIM, ("", "", "", *_cells(finding))


def _cells(finding: Finding) -> tuple[str, str, str]:
    age, limit = finding.age_seconds, finding.limit_seconds
    return (
        f"{finding.what}: {finding.value}",
        "" if age is None else duration(age),
        "" if limit is None else duration(limit),
    )


def _rest(
    causes: Sequence[Any], runbook: str, notes: Sequence[str], missing: Sequence[Missing]
) -> Iterator[Block]:
    if notes:
        yield Lines(tuple(f"note: {each}" for each in notes))
    if causes:
        yield Heading("likely causes, in order, and what proves each")
        lines = [
            line
            for number, each in enumerate(causes, start=1)
            for line in (f"{number}. {each.words}", f"   {each.command}")
        ]
        yield Lines(tuple(lines))
    if runbook:
        yield Lines((f"runbook: {runbook}",))
    yield from _missing(missing)


def _missing(missing: Sequence[Missing]) -> Iterator[Block]:
    if missing:
        yield Heading("could not be looked at")
        yield Lines(tuple(f"{each.what}: {each.why}" for each in missing))


def json_of(diagnosis: Diagnosis) -> dict[str, Any]:
    """Return a diagnosis of an asset, or of the installation, for programs."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Diagnosis",
        "asset": diagnosis.subject or None,
        "namespace": diagnosis.namespace or None,
        "verdict": diagnosis.verdict,
        "firstBroken": diagnosis.first_broken or None,
        "reason": diagnosis.reason or None,
        "message": diagnosis.message or None,
        OPERATOR.lower(): _json_of_link(diagnosis.operator),
        "links": [_json_of_link(each) for each in diagnosis.links],
        "causes": _json_of_causes(diagnosis.causes),
        "runbook": diagnosis.runbook or None,
        "notes": list(diagnosis.notes),
        "missing": _json_of_missing(diagnosis.missing),
    }


def json_of_dispatch(diagnosis: DispatchDiagnosis) -> dict[str, Any]:
    """Return why a dispatch is where it is, for programs."""
    return {
        "apiVersion": API_VERSION,
        "kind": "DispatchDiagnosis",
        "dispatch": diagnosis.name,
        "namespace": diagnosis.namespace,
        "asset": diagnosis.asset,
        "verdict": diagnosis.verdict,
        "phase": diagnosis.phase,
        "reason": diagnosis.reason or None,
        "message": diagnosis.message or None,
        "stoppedAt": diagnosis.stop or None,
        "why": diagnosis.why,
        "evidence": [_json_of_finding(each) for each in diagnosis.findings],
        "causes": _json_of_causes(diagnosis.causes),
        "runbook": diagnosis.runbook or None,
        "missing": _json_of_missing(diagnosis.missing),
    }


def json_of_fleet(fleet: Fleet) -> dict[str, Any]:
    """Return counts for programs."""
    return {
        "namespace": fleet.within or None,
        "assets": fleet.assets,
        "assetsByReason": dict(fleet.by_reason),
        "worstNamespaces": [
            {"namespace": each.namespace, "broken": each.broken, "assets": each.assets}
            for each in fleet.worst
        ],
        "dispatchesByPhase": None if fleet.dispatches is None else dict(fleet.dispatches),
        "missing": _json_of_missing(fleet.missing),
    }


def json_of_timeline(
    name: str, namespace: str, entries: Iterable[Entry], missing: Sequence[Missing]
) -> dict[str, Any]:
    """Return a timeline for programs."""
    return {
        "apiVersion": API_VERSION,
        "kind": "Timeline",
        "asset": name,
        "namespace": namespace,
        "entries": [
            {"at": _utc(each.at), "from": each.source, "about": each.about, "what": each.what}
            for each in entries
        ],
        "missing": _json_of_missing(missing),
    }


def _json_of_link(judged: LinkJudgement) -> dict[str, Any]:
    return {
        "name": judged.link,
        "state": judged.standing,
        "reason": judged.reason or None,
        "why": judged.why,
        "evidence": [_json_of_finding(each) for each in judged.findings],
    }


def _json_of_finding(finding: Finding) -> dict[str, Any]:
    return {
        "what": finding.what,
        "value": finding.value,
        "ageSeconds": None if finding.age_seconds is None else round(finding.age_seconds, 1),
        "limitSeconds": finding.limit_seconds,
    }


def _json_of_causes(causes: Sequence[Any]) -> list[dict[str, str]]:
    return [{"cause": each.words, "command": each.command} for each in causes]


def _json_of_missing(missing: Sequence[Missing]) -> list[dict[str, Any]]:
    return [
        {
            "what": each.what,
            "why": each.why,
            "right": {
                "verb": each.right.verb,
                "resource": each.right.resource,
                "namespace": each.right.namespace or None,
            }
            if each.right
            else None,
        }
        for each in missing
    ]


def _utc(moment: datetime) -> str:
    return format_instant(moment, "milliseconds")
