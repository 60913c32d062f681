"""From evidence to a diagnosis: of one asset, and of the installation. Pure.

The row in the database has the last word: one that is new proves all links, whatever is said of
them; with none, everything else may hold and the data is still not there.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from derops.data_path import AssetFault, Link, SeenFault, SharedFault, stale_after_seconds
from derops.runbooks import RUNBOOK_OF
from derops_cli import asset_links, shared_links
from derops_cli.causes import Place, causes_of
from derops_cli.diagnosis import (
    FRESH,
    Diagnosis,
    Finding,
    LinkJudgement,
    Standing,
    Verdict,
    find_first,
    reach_verdict,
    waiting_links,
)
from derops_cli.evidence import (
    CertificateSeen,
    EventSeen,
    Evidence,
    Missing,
    Stored,
    Surroundings,
)
from derops_cli.words import clean, duration, instant

CLOCK_SECONDS = 5
"""How far the caller's clock may be off before that is said."""

_RECENT, _MOST_NOTES = timedelta(hours=1), 3
_NOT_ASKED = "no access to the API was asked for: see --as-service-account, --token, --login"


def diagnose(evidence: Evidence, now: datetime, place: Place) -> Diagnosis:
    """Return what is wrong with the data of one asset.

    Args:
        evidence: What was looked at.
        now: By the caller's clock; what is known of the API server's corrects it.
        place: What the commands are for.
    """
    seen, asset = evidence.surroundings, evidence.asset
    at = true_now(seen.clock_ahead_seconds, now)
    operator = shared_links.judge_operator(seen, at)
    links = [
        *_own_links(evidence, at, operator_silent=operator.broken),
        *_shared(seen, operator_silent=operator.broken),
        _judge_fresh(evidence, at),
    ]
    if asset_links.find_fault(asset, at)[0] is AssetFault.TELEMETRY_REFUSED and not operator.broken:
        links = [_refused(each, evidence, at) for each in links]
    if isinstance(evidence.stored, Stored) and not evidence.stored.answers:
        links = [
            shared_links.doubt_database(each) if each.link == Link.DATABASE else each
            for each in links
        ]
    notes = [*_notes(evidence, at, operator), *_waiting_notes(links)]
    if links[-1].standing is Standing.HOLDS:
        notes += _overruled(links)
        links = [_proved(each) for each in links]
    return _conclude(
        operator, links, place, notes, _missing(evidence), unknown=asset_links.unknown_reason(asset)
    )


def diagnose_installation(seen: Surroundings, now: datetime, place: Place) -> Diagnosis:
    """Return what is wrong for all."""
    at = true_now(seen.clock_ahead_seconds, now)
    operator = shared_links.judge_operator(seen, at)
    links = _shared(seen, operator_silent=operator.broken)
    notes = [*_clock_notes(seen), *_waiting_notes(links)]
    return _conclude(operator, links, place, notes, _missing_of(seen))


def true_now(ahead_seconds: float | None, now: datetime) -> datetime:
    """Return now by the API server's clock, as far as it is known.

    Args:
        ahead_seconds: How far the caller's clock is ahead of it; None = not known.
        now: By the caller's clock.
    """
    if ahead_seconds is None or abs(ahead_seconds) <= CLOCK_SECONDS:
        return now  # the call that told it took time as well
    return now - timedelta(seconds=ahead_seconds)


def _conclude(
    operator: LinkJudgement,
    links: Sequence[LinkJudgement],
    place: Place,
    notes: Sequence[str],
    missing: Sequence[Missing],
    *,
    unknown: str = "",
) -> Diagnosis:
    verdict = reach_verdict(operator, links)
    first = find_first(operator, links) if verdict is Verdict.BROKEN else None
    reason, message = (first.reason, first.why) if first else ("", "")
    if unknown and first is None and verdict is not Verdict.FLOWS:
        verdict, reason = Verdict.BROKEN, unknown
        message = "DataFlowing is False for a reason that this version of the plugin does not know"
    fault = known_fault(reason)
    return Diagnosis(
        subject=place.asset,
        namespace=place.namespace,
        verdict=verdict,
        operator=operator,
        links=tuple(links),
        first_broken=first.link if first else "",
        reason=reason,
        message=message,
        causes=causes_of(fault, place) if fault else (),
        runbook=RUNBOOK_OF.get(fault, "") if fault else "",
        notes=tuple(notes),
        missing=tuple(missing),
    )


def known_fault(reason: str) -> AssetFault | SharedFault | SeenFault | None:
    """Return the fault that a reason names; None = this version does not know it."""
    for kind in (AssetFault, SharedFault, SeenFault):
        if reason in set(kind):
            return kind(reason)
    return None


def _shared(seen: Surroundings, *, operator_silent: bool) -> list[LinkJudgement]:
    return [
        shared_links.judge_shared(link, seen, operator_silent=operator_silent)
        for link in shared_links.CONDITION_OF
    ]


def _own_links(evidence: Evidence, at: datetime, *, operator_silent: bool) -> list[LinkJudgement]:
    asset = evidence.asset
    found = evidence.certificate
    certificate = found if isinstance(found, CertificateSeen) else None
    if not operator_silent:
        return asset_links.judge_own(asset, certificate, at)
    why = "the operator is silent: what it wrote of the asset may be old"
    links = [
        LinkJudgement(
            link=link,
            standing=Standing.NOT_LOOKED_AT,
            why=why,
            findings=asset_links.findings_of(asset, link, certificate, at),
        )
        for link in asset_links.OWN_LINKS
    ]
    if asset_links.is_expired(asset, at):
        links[-1] = asset_links.judge_expired(asset, at, links[-1].findings)
    return links


def _refused(link: LinkJudgement, evidence: Evidence, at: datetime) -> LinkJudgement:
    if link.link != Link.EVENT_LOG or link.broken:
        return link
    return replace(
        link,
        standing=Standing.BROKEN,
        reason=AssetFault.TELEMETRY_REFUSED,
        why=clean(asset_links.find_fault(evidence.asset, at)[1]) or AssetFault.TELEMETRY_REFUSED,
    )


def _judge_fresh(evidence: Evidence, at: datetime) -> LinkJudgement:
    stored, asset = evidence.stored, evidence.asset
    limit_seconds = stale_after_seconds(asset.spec.telemetry.interval_seconds)
    if not isinstance(stored, Stored):
        why = stored.why if stored is not None else _NOT_ASKED
        return LinkJudgement(link=FRESH, standing=Standing.NOT_LOOKED_AT, why=why)
    if not stored.answers:
        why = "the API gets no answer from its database"
        return LinkJudgement(link=FRESH, standing=Standing.NOT_LOOKED_AT, why=why)
    newest = stored.newest
    if newest is None:
        made_seconds = (at - asset.metadata.creation_timestamp).total_seconds()
        if made_seconds < limit_seconds:
            why = f"the asset was made {duration(made_seconds)} ago"
            return LinkJudgement(link=FRESH, standing=Standing.NOT_LOOKED_AT, why=why)
        return LinkJudgement(
            link=FRESH,
            standing=Standing.BROKEN,
            reason=SeenFault.NOTHING_STORED,
            why="the database has no sample of the last two days",
        )
    arrived_seconds = (at - newest.received_at).total_seconds()
    findings = (
        Finding(
            what="newest sample",
            value=instant(newest.at),
            age_seconds=newest.age_seconds,
            limit_seconds=limit_seconds,
        ),
        Finding(
            what="came to the gateway",
            value=instant(newest.received_at),
            age_seconds=arrived_seconds,
        ),
    )
    if newest.age_seconds <= limit_seconds:
        why = f"the newest sample in the database is {duration(newest.age_seconds)} old"
        return LinkJudgement(link=FRESH, standing=Standing.HOLDS, why=why, findings=findings)
    if arrived_seconds <= limit_seconds:
        why = (
            f"what came {duration(arrived_seconds)} ago was measured "
            f"{duration(newest.age_seconds)} ago, by the agent's clock"
        )
        reason = SeenFault.OLD_SAMPLES
    else:
        why = f"the database has nothing since {instant(newest.at)}"
        reason = SeenFault.NOTHING_STORED
    return LinkJudgement(
        link=FRESH, standing=Standing.BROKEN, reason=reason, why=why, findings=findings
    )


def _proved(link: LinkJudgement) -> LinkJudgement:
    if link.link == FRESH or link.standing is Standing.HOLDS:
        return link
    return replace(
        link, standing=Standing.HOLDS, reason="", why="the newest row in the database proves it"
    )


def _overruled(links: Iterable[LinkJudgement]) -> Iterator[str]:
    """Yield what the row in the database proves wrong."""
    for each in links:
        if each.broken:
            yield (
                f"{each.link} was told to be broken ({each.reason}: {each.why}); the newest row "
                "in the database is newer than that"
            )


def _waiting_notes(links: Sequence[LinkJudgement]) -> Iterator[str]:
    for name in waiting_links(links):
        yield f"{name} only waits: what takes its data away is broken"


def _notes(evidence: Evidence, at: datetime, operator: LinkJudgement) -> Iterator[str]:
    yield from _clock_notes(evidence.surroundings)
    asset = evidence.asset
    if asset.metadata.deletion_timestamp is not None:
        yield f"the asset is being deleted since {instant(asset.metadata.deletion_timestamp)}"
    degraded = asset_links.condition_of(asset, "TelemetryDegraded")
    if degraded is not None and degraded.status == "True" and not operator.broken:
        yield f"single points are bad: {clean(degraded.message)}"
    if asset.status.observed_generation != asset.metadata.generation:
        yield "the status is about an earlier version of the spec"
    if not isinstance(evidence.events, Missing):
        yield from _event_notes(evidence.events, at)
    if isinstance(evidence.stored, Stored):
        yield from _stored_notes(evidence.stored)
    if operator.standing is Standing.NOT_LOOKED_AT:
        yield "whether the operator still writes is not known: its conditions are taken as they are"


def _event_notes(events: Iterable[EventSeen], at: datetime) -> Iterator[str]:
    """Yield the newest warnings of the last hour; ``events`` are the newest first."""
    warnings = [each for each in events if each.warning and at - each.at < _RECENT]
    for each in warnings[:_MOST_NOTES]:
        age = duration((at - each.at).total_seconds())
        yield f"Event {age} ago: {clean(each.reason)}: {clean(each.note)}"


def _stored_notes(stored: Stored) -> Iterator[str]:
    ends = [each for each in stored.connections if each.event != "Connected"]
    if ends:
        yield (
            f"in the last hour {len(ends)} connections ended or were refused; the newest at "
            f"{instant(ends[0].at)}: {clean(ends[0].reason)}: {clean(ends[0].message)}"
        )
    for gap in stored.gaps[:_MOST_NOTES]:
        yield (
            f"gap: {gap.samples} samples from {instant(gap.start)} to {instant(gap.end)} were "
            f"dropped by the agent ({clean(gap.reason)})"
        )


def _clock_notes(seen: Surroundings) -> Iterator[str]:
    ahead_seconds = seen.clock_ahead_seconds
    if ahead_seconds is not None and abs(ahead_seconds) > CLOCK_SECONDS:
        way = "ahead of" if ahead_seconds > 0 else "behind"
        yield (
            f"this machine's clock is {duration(abs(ahead_seconds))} {way} the API server's, "
            "by which all ages here are"
        )


def _missing(evidence: Evidence) -> list[Missing]:
    found = (evidence.events, evidence.certificate, evidence.stored)
    return [
        *_missing_of(evidence.surroundings),
        *(each for each in found if isinstance(each, Missing)),
    ]


def _missing_of(seen: Surroundings) -> list[Missing]:
    return [each for each in (seen.installation, seen.workloads) if isinstance(each, Missing)]
