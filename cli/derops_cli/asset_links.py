"""The links of one asset, by the conditions of its DERAsset and by its spec. Pure.

``DataFlowing`` decides where it says something. An older operator has no such condition, an older
agent tells nothing for it: then ``Connected`` and ``DeviceSilent`` decide what they can.
"""

from collections.abc import Iterator
from datetime import datetime

from derops.data_path import CONDITION, LINK_OF, AssetFault, Link, stale_after_seconds
from derops.resources.base import Condition
from derops.resources.derassets import DERAsset
from derops_cli.diagnosis import Finding, LinkJudgement, Standing
from derops_cli.evidence import CertificateSeen
from derops_cli.words import clean, duration, instant

OWN_LINKS = (Link.DEVICE, Link.SAMPLING, Link.OUTBOX, Link.STREAM)
"""The links that are one asset's alone; of the event log, a refusal is."""

_TOLD_BY = {
    Link.DEVICE: ("DeviceSilent", "TelemetryDegraded"),
    Link.STREAM: ("Connected", "Enrolled", "Quarantined"),
}


def condition_of(asset: DERAsset, kind: str) -> Condition | None:
    """Return a condition of an asset, or None."""
    return next((each for each in asset.status.conditions if each.type == kind), None)


def status_of(asset: DERAsset, kind: str) -> str:
    """Return the status of a condition, Unknown where there is none."""
    found = condition_of(asset, kind)
    return found.status if found else "Unknown"


def find_fault(asset: DERAsset, at: datetime) -> tuple[AssetFault | None, str]:
    """Return what breaks the path of an asset, and in which words that is said; None = nothing."""
    said = condition_of(asset, CONDITION)
    if said is not None and not is_overtaken(asset):
        if said.status == "True":
            return None, ""
        if said.status == "False" and said.reason in set(AssetFault):
            return AssetFault(said.reason), said.message
    return next(_elsewhere_found(asset, at), (None, ""))


def is_overtaken(asset: DERAsset) -> bool:
    """Tell whether other conditions know more than ``DataFlowing``, which is told later.

    A break is told once it has lasted, and a stream that is open again is not judged at once.
    """
    said = condition_of(asset, CONDITION)
    if said is None:
        return False
    if said.status == "True":
        connected, silent = status_of(asset, "Connected"), status_of(asset, "DeviceSilent")
        return connected == "False" or silent == "True"
    stream = {str(fault) for fault, link in LINK_OF.items() if link is Link.STREAM}
    return said.reason in stream and status_of(asset, "Connected") == "True"


def unknown_reason(asset: DERAsset) -> str:
    """Return the reason of ``DataFlowing`` if this version does not know it; else nothing."""
    said = condition_of(asset, CONDITION)
    if said is None or said.status != "False" or said.reason in set(AssetFault):
        return ""
    return clean(said.reason)


def _elsewhere_found(asset: DERAsset, at: datetime) -> Iterator[tuple[AssetFault, str]]:
    """Yield what spec, ledger and the other conditions show, the likeliest cause first."""
    if asset.spec.operating_state == "Quarantined" or status_of(asset, "Quarantined") == "True":
        yield AssetFault.QUARANTINED, _message(asset, "Quarantined", "the spec says so")
    if asset.spec.operating_state == "OutOfService":
        yield AssetFault.OUT_OF_SERVICE, "spec.operatingState is OutOfService"
    if status_of(asset, "Connected") != "True":
        yield from _certificate_found(asset, at)
    if status_of(asset, "Connected") == "False":
        yield AssetFault.AGENT_OFFLINE, _message(asset, "Connected")
    if status_of(asset, "DeviceSilent") == "True":
        yield AssetFault.DEVICE_SILENT, _message(asset, "DeviceSilent")


def _certificate_found(asset: DERAsset, at: datetime) -> Iterator[tuple[AssetFault, str]]:
    if is_expired(asset, at):
        yield AssetFault.CERTIFICATE_EXPIRED, _expiry(asset)
    identity = asset.status.identity
    if status_of(asset, "Enrolled") == "False" and not (identity and identity.current):
        yield AssetFault.NOT_ENROLLED, _message(asset, "Enrolled")


def is_expired(asset: DERAsset, at: datetime) -> bool:
    """Tell whether no certificate of an asset is valid any more; by its dates alone."""
    ends = certificates_end(asset)
    return ends is not None and ends <= at


def certificates_end(asset: DERAsset) -> datetime | None:
    """Return when the last certificate of an asset ends; None = it has none."""
    identity = asset.status.identity
    known = [identity.current, identity.next] if identity else []
    return max((each.not_after for each in known if each is not None), default=None)


def judge_own(
    asset: DERAsset, certificate: CertificateSeen | None, at: datetime
) -> list[LinkJudgement]:
    """Return what is known of each link that is the asset's own."""
    fault, words = find_fault(asset, at)
    findings = {link: findings_of(asset, link, certificate, at) for link in OWN_LINKS}
    if fault is None and status_of(asset, CONDITION) == "True" and not is_overtaken(asset):
        return [
            _holds(link, "the operator says that data flows", findings[link]) for link in OWN_LINKS
        ]
    if fault is None:
        return _judge_without_word(asset, findings)
    broken = LINK_OF[fault]
    return [_judge_beside(asset, link, broken, fault, words, findings[link]) for link in OWN_LINKS]


def judge_expired(asset: DERAsset, at: datetime, findings: tuple[Finding, ...]) -> LinkJudgement:
    """Return the judgement of a stream whose certificate is over, whoever is silent."""
    return LinkJudgement(
        link=Link.STREAM,
        standing=Standing.BROKEN,
        reason=AssetFault.CERTIFICATE_EXPIRED,
        why=_expiry(asset),
        findings=findings,
    )


def findings_of(
    asset: DERAsset, link: Link, certificate: CertificateSeen | None, at: datetime
) -> tuple[Finding, ...]:
    """Return what the asset shows of one of its links."""
    told = [condition_of(asset, kind) for kind in _TOLD_BY.get(link, ())]
    found = [_finding(each, at) for each in told if each is not None]
    if link is Link.SAMPLING:
        if (said := condition_of(asset, CONDITION)) is not None:
            found.insert(0, _finding(said, at))
        interval = asset.spec.telemetry.interval_seconds
        found.append(
            Finding(
                what="spec.telemetry.intervalSeconds",
                value=f"{interval} s",
                limit_seconds=stale_after_seconds(interval),
            )
        )
    if link is Link.STREAM:
        found += _stream_findings(asset, certificate, at)
    return tuple(found)


def _stream_findings(
    asset: DERAsset, certificate: CertificateSeen | None, at: datetime
) -> Iterator[Finding]:
    status = asset.status
    if status.identity is not None and status.identity.current is not None:
        ends = status.identity.current.not_after
        left_seconds = (ends - at).total_seconds()
        left = f"{duration(left_seconds)} left" if left_seconds > 0 else "expired"
        yield Finding(what="certificate: notAfter", value=f"{instant(ends)}, {left}")
    if status.last_connected_time is not None:
        yield _moment("lastConnectedTime", status.last_connected_time, at)
    if status.last_disconnected_time is not None:
        yield _moment("lastDisconnectedTime", status.last_disconnected_time, at)
    if asset.spec.operating_state != "InService":
        yield Finding(what="spec.operatingState", value=asset.spec.operating_state)
    if certificate is not None and certificate.ready != "True":
        words = f"Ready is {certificate.ready}: {certificate.reason}: {clean(certificate.message)}"
        yield Finding(what=f"Certificate {certificate.name}", value=words)


def _moment(what: str, moment: datetime, at: datetime) -> Finding:
    return Finding(what=what, value=instant(moment), age_seconds=(at - moment).total_seconds())


def _finding(condition: Condition, at: datetime) -> Finding:
    words = f"{condition.status}, {clean(condition.reason)}"
    if condition.message:
        words += f": {clean(condition.message)}"
    return Finding(
        what=f"condition {condition.type}",
        value=words,
        age_seconds=(at - condition.last_transition_time).total_seconds(),
    )


def _judge_beside(
    asset: DERAsset,
    link: Link,
    broken: Link,
    fault: AssetFault,
    words: str,
    findings: tuple[Finding, ...],
) -> LinkJudgement:
    """Return what is known of a link where another one, or it, is the first broken one."""
    if link is broken:
        return LinkJudgement(
            link=link,
            standing=Standing.BROKEN,
            reason=fault,
            why=clean(words) or str(fault),
            findings=findings,
        )
    if broken is Link.STREAM:
        return _unseen(link, "only the agent knows, and it has no stream", findings)
    order = list(Link)
    if order.index(link) < order.index(broken):
        return _holds(link, f"the first broken link comes after it ({fault})", findings)
    if link is Link.STREAM and status_of(asset, "Connected") == "True":
        return _holds(link, "the agent's stream is open", findings)
    return _unseen(link, "it shows once what comes before it holds", findings)


def _judge_without_word(
    asset: DERAsset, findings: dict[Link, tuple[Finding, ...]]
) -> list[LinkJudgement]:
    """Return what is known where nothing is found broken, and nobody says that data flows."""
    said = condition_of(asset, CONDITION)
    why = (
        f"{CONDITION} is {said.status} ({clean(said.reason)})"
        if said is not None
        else f"the asset has no condition {CONDITION}: its operator is of an earlier version, "
        "or has not looked yet"
    )
    judged = [_unseen(link, why, findings[link]) for link in OWN_LINKS]
    if status_of(asset, "Connected") == "True":
        judged[-1] = _holds(Link.STREAM, "the agent's stream is open", findings[Link.STREAM])
        if status_of(asset, "DeviceSilent") == "False":
            judged[0] = _holds(Link.DEVICE, "the device answers", findings[Link.DEVICE])
    return judged


def _holds(link: Link, why: str, findings: tuple[Finding, ...]) -> LinkJudgement:
    return LinkJudgement(link=link, standing=Standing.HOLDS, why=why, findings=findings)


def _unseen(link: Link, why: str, findings: tuple[Finding, ...]) -> LinkJudgement:
    return LinkJudgement(link=link, standing=Standing.NOT_LOOKED_AT, why=why, findings=findings)


def _message(asset: DERAsset, kind: str, otherwise: str = "") -> str:
    found = condition_of(asset, kind)
    return found.message if found is not None and found.message else otherwise


def _expiry(asset: DERAsset) -> str:
    ends = certificates_end(asset)
    return f"the certificate expired at {instant(ends)}" if ends else "there is no certificate"
