"""What a diagnosis is: a judgement of each link, the first broken one, and what follows. Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from derops.data_path import AssetFault, Link, SharedFault
from derops_cli.evidence import Missing

OPERATOR = "Operator"
"""No link of the data path: what the judgement of most links rests on."""

FRESH = "Fresh"
"""Whether the newest sample in the database is new; what all links together do."""

WAITING = frozenset({AssetFault.OUTBOX_BEHIND, SharedFault.LOG_FULL, SharedFault.WRITER_BEHIND})
"""Faults that a later link causes: what is not taken away piles up before it."""

TAKING = (Link.EVENT_LOG, Link.WRITER, Link.DATABASE)
"""The links that make those before them wait."""


class Standing(StrEnum):
    """What is known of a link."""

    HOLDS = "Holds"
    BROKEN = "Broken"
    NOT_LOOKED_AT = "NotLookedAt"


class Verdict(StrEnum):
    """What a diagnosis comes to."""

    FLOWS = "Flows"
    """Each link holds."""

    NOTHING_FOUND = "NothingFound"
    """No link is known to be broken, and some could not be looked at."""

    BROKEN = "Broken"
    NOT_LOOKED_AT = "NotLookedAt"
    """Nothing could be judged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A piece of evidence."""

    what: str
    value: str
    age_seconds: float | None = None
    limit_seconds: float | None = None
    """The oldest that it may be; None = it has no such limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkJudgement:
    """What is known of one link."""

    link: str
    standing: Standing
    why: str
    reason: str = ""
    """The fault, as one word; empty = none."""

    findings: tuple[Finding, ...] = ()

    @property
    def broken(self) -> bool:
        """Whether it is broken."""
        return self.standing is Standing.BROKEN


@dataclass(frozen=True, slots=True)
class Cause:
    """What may have caused a fault, and the command that proves it."""

    words: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """What was found out about one asset, or about the installation."""

    subject: str
    """Name of the asset; empty = the installation."""

    namespace: str
    verdict: Verdict
    operator: LinkJudgement
    links: tuple[LinkJudgement, ...]
    first_broken: str = ""
    """Name of the link, or ``OPERATOR``; empty = none."""

    reason: str = ""
    message: str = ""
    causes: tuple[Cause, ...] = ()
    runbook: str = ""
    notes: tuple[str, ...] = ()
    missing: tuple[Missing, ...] = ()


def find_first(operator: LinkJudgement, links: Sequence[LinkJudgement]) -> LinkJudgement | None:
    """Return the first broken link that does not only wait for a later one; None = none is broken.

    Without an operator nothing that it wrote is known: then it is the operator, unless the
    database proves otherwise, or a link is broken by what needs no operator.
    """
    for index, each in enumerate(links):
        if each.broken and not _waits(each, links[index + 1 :]):
            return each if each.link != FRESH or not operator.broken else operator
    return operator if operator.broken else None


def waiting_links(links: Sequence[LinkJudgement]) -> list[str]:
    """Return the names of the broken links that only wait for a later one."""
    return [
        each.link
        for index, each in enumerate(links)
        if each.broken and _waits(each, links[index + 1 :])
    ]


def _waits(link: LinkJudgement, later: Iterable[LinkJudgement]) -> bool:
    return link.reason in WAITING and any(each.broken and each.link in TAKING for each in later)


def reach_verdict(operator: LinkJudgement, links: Sequence[LinkJudgement]) -> Verdict:
    """Return what the judgements come to; the row in the database is no link that must be seen."""
    fresh = {each.standing for each in links if each.link == FRESH}
    path = {each.standing for each in links if each.link != FRESH}
    if Standing.HOLDS in fresh:
        return Verdict.FLOWS
    if Standing.BROKEN in {operator.standing} | fresh | path:
        return Verdict.BROKEN
    if path == {Standing.HOLDS}:
        return Verdict.FLOWS
    return Verdict.NOTHING_FOUND if Standing.HOLDS in path else Verdict.NOT_LOOKED_AT
