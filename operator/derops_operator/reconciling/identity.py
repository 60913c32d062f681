"""The identity of an asset: its Certificate, which requests are signed, and the ledger."""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from derops.ids import AssetName
from derops.lifecycle import MESSAGE_LIMIT
from derops.schedules import SECOND_US
from derops_operator.gateways.views import Connectivity, SessionView
from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Certificate, Request, duration_seconds
from derops_operator.resources.instants import format_instant, format_second, parse_instant
from derops_operator.resources.objects import ASSET_LABEL, MANAGED_BY
from derops_operator.resources.pem import Csr, Issued

PREVIOUS_US = 600 * SECOND_US
"""How long the certificate before the current one is accepted: a mounted Secret may lag."""

_EARLY_SHARE = 3
"""The last third of its life is when a certificate is renewed, see ``renewBefore``."""

_EARLY_MARGIN_SHARE = 20
_NUMBER_AT_THE_END = re.compile(r"-([0-9]{1,18})\Z")
_USAGES = ["client auth", "digital signature"]
_CERTIFICATES = ("current", "next", "previous")
_NAME_LIMIT = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Realm:
    """What identities are made of, the same for all assets."""

    trust_domain: str
    issuer: str
    requester: str
    """Who may ask for certificates: the user that cert-manager is to the API server."""


def certificate_name(asset_name: str) -> str:
    """Return the name of an asset's Certificate, a DNS label however long the asset's name is."""
    name = f"{asset_name}-derops-agent"
    if len(name) <= _NAME_LIMIT:
        return name
    digest = hashlib.sha256(asset_name.encode()).hexdigest()[:8]
    return f"{asset_name[:40]}-{digest}-derops-agent"


def asset_uri(asset: Asset, trust_domain: str) -> str:
    """Return the SPIFFE URI of an asset."""
    return AssetName(asset.meta.namespace, asset.meta.name).uri(trust_domain)


def wanted_certificate(asset: Asset, trust_domain: str, issuer: str) -> dict[str, Any]:
    """Return the Certificate that cert-manager is to keep for an asset."""
    seconds = asset.certificate_duration_seconds
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {
            "name": certificate_name(asset.meta.name),
            "namespace": asset.meta.namespace,
            "labels": {**MANAGED_BY, ASSET_LABEL: asset.meta.name},
            "ownerReferences": [
                {
                    "apiVersion": "derops.io/v1alpha1",
                    "kind": "DERAsset",
                    "name": asset.meta.name,
                    "uid": asset.meta.uid,
                    "controller": True,
                }
            ],
        },
        "spec": {
            "secretName": f"{asset.meta.name}-derops-agent",
            "duration": f"{seconds}s",
            "renewBefore": f"{seconds // 3}s",
            "uris": [asset_uri(asset, trust_domain)],
            "usages": _USAGES,
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "issuerRef": {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": issuer},
            "revisionHistoryLimit": 2,
        },
    }


def differs(certificate: Certificate, wanted: Mapping[str, Any]) -> bool:
    """Tell whether a Certificate lacks anything that is wanted; durations are read as times."""
    return any(
        _duration(certificate.spec.get(field)) != _duration(value)
        for field, value in wanted["spec"].items()
    )


def not_revoked(own: Iterable[Request], ledger: Mapping[str, Any]) -> list[Request]:
    """Return the requests without those that were issued and whose key was revoked since."""
    before = ledger.get("revokedBefore")
    before_us = parse_instant(before) if before else 0
    return [each for each in own if each.issued is None or each.meta.created_us >= before_us]


def own_requests(
    requests: Iterable[Request], certificate: Certificate | None, requester: str
) -> list[Request]:
    """Return the requests that cert-manager made for the Certificate as it exists, newest first.

    No annotation tells which is the newest. They are ordered by their creation, as the API server
    notes it, then by what was issued, then by the number at the end of the name.
    """
    own = [each for each in claims(requests, certificate) if each.username == requester]
    return sorted(own, key=_age, reverse=True)


def foreign_requests(
    requests: Iterable[Request], certificate: Certificate | None, requester: str
) -> list[Request]:
    """Return the requests that claim to be for the Certificate, and that others made."""
    return [each for each in claims(requests, certificate) if each.username != requester]


def claims(requests: Iterable[Request], certificate: Certificate | None) -> list[Request]:
    """Return the requests whose owner is the Certificate, as whoever created them wrote it."""
    if certificate is None:
        return []
    return [each for each in requests if each.certificate_uid == certificate.meta.uid]


def _age(request: Request) -> tuple[int, bool, int, int]:
    number = _NUMBER_AT_THE_END.search(request.meta.name)
    issued = request.issued
    return (
        request.meta.created_us,
        issued is None,  # one that waits is newer than one of the same second that does not
        issued.not_before_us if issued is not None else 0,
        int(number[1]) if number is not None else 0,
    )


def refuse_requester(request: Request, requester: str) -> str:
    """Return why nobody but cert-manager may have asked."""
    asked = request.username[:100] or "nobody: cert-manager's webhook has not noted it"
    return f"it was created by {asked}, not by {requester}"


def revoke(ledger: Mapping[str, Any], own: Iterable[Request]) -> dict[str, Any]:
    """Return ``status.identity`` without any certificate, and without a way back for those of now.

    What counts is when their requests were made, by the API server's clock. A request that is not
    issued yet, or came after those that the ledger knows, is for a new key.
    """
    kept = {name: ledger[name] for name in ledger if name not in _CERTIFICATES}
    serials = _serials(ledger)
    issued = [(each.issued.serial_number, each.meta.created_us) for each in own if each.issued]
    known = [created_us for serial, created_us in issued if serial in serials]
    created = known or [created_us for _, created_us in issued]
    if created:
        kept["revokedBefore"] = format_second(max(created) + SECOND_US)
    return kept


def refuse_to_sign(request: Request, uri: str, issuer: str) -> str:
    """Return why a request of cert-manager must not be signed; empty = nothing speaks against it.

    Its duration is not judged here, see ``has_duration``.
    """
    csr = request.csr
    if csr is None:
        return "the request cannot be read"
    named = {f"its names are not exactly {uri}": csr.uris != (uri,) or csr.other_names > 0}
    return find_flaws(request, csr, issuer, named, _USAGES)


def find_flaws(
    request: Request,
    csr: Csr,
    issuer: str,
    own: Mapping[str, bool],
    usages: Sequence[str],
) -> str:
    """Return what is wrong with a request for a certificate of agents' issuer; empty = nothing.

    Args:
        request: Who asked for it was judged before.
        csr: What it asks for.
        issuer: Name of the ClusterIssuer of agents.
        own: What else may be wrong, by its words, and whether it is.
        usages: What the key shall be used for, and nothing else.
    """
    problems = {
        f"it is for {request.issuer_kind} {request.issuer_name}": (
            (request.issuer_kind, request.issuer_name) != ("ClusterIssuer", issuer)
        ),
        "its signature is not valid": not csr.signature_valid,
        "its key is not EC P-256": not csr.is_p256,
        "it asks to be a certificate authority": csr.is_ca or request.is_ca,
        "its subject is not empty": not csr.subject_empty,
        **own,
        f"its usages are not exactly {', '.join(usages)}": request.usages != set(usages),
        f"it has extensions {', '.join(csr.unexpected_extensions)}": bool(
            csr.unexpected_extensions
        ),
    }
    return "; ".join(problem for problem, found in problems.items() if found)[:MESSAGE_LIMIT]


def has_duration(request: Request, asset: Asset) -> bool:
    """Tell whether a request is for as long as the asset wants.

    One that is not is left without an answer. Where the duration was just changed, cert-manager
    replaces the request by itself; a Denied would have it wait for an hour first.
    """
    return request.duration_seconds == asset.certificate_duration_seconds


def trusted(requests: Iterable[Request], asset: Asset, uri: str, issuer: str) -> list[Issued]:
    """Return what was issued for requests of cert-manager that were right to sign, in order.

    Approved is not enough: others may have the right to approve, and what was signed may be for
    another key than was asked for.
    """
    return [
        each.issued
        for each in requests
        if each.issued is not None
        and each.csr is not None
        and each.issued.uris == (uri,)
        and each.issued.public_key_sha256 == each.csr.public_key_sha256
        and each.condition("Approved").get("status") == "True"
        and has_duration(each, asset)
        and not refuse_to_sign(each, uri, issuer)
    ]


def early_issuance(
    stored: Mapping[str, Any], ledger: Mapping[str, Any], requests: Iterable[Request]
) -> str:
    """Return in words that a certificate came long before the one in use had to be renewed.

    Empty where it did not, or where the asset's duration was changed, which issues anew as well.

    Args:
        stored: The ledger as it was.
        ledger: The ledger with the new certificate.
        requests: All of the asset, to find what the ledger does not tell of certificates.
    """
    current, following = ledger.get("current"), ledger.get("next")
    if not current or not following or following["serialNumber"] in _serials(stored):
        return ""
    new, last = _find_issued(following["serialNumber"], requests)
    if new is None:
        return ""
    life_us = _life_us(new)
    was_changed = last is not None and _life_us(last) != life_us
    left_us = parse_instant(current["notAfter"]) - new.not_before_us
    if was_changed or left_us <= life_us // _EARLY_SHARE + life_us // _EARLY_MARGIN_SHARE:
        return ""
    return (
        f"certificate {new.serial_number} was issued although {current['serialNumber']} was good "
        f"for {left_us // SECOND_US} s more, until {current['notAfter']}: that is as it should be "
        f"where the Secret was lost or somebody renewed it; if not, find out who asked for it"
    )


def _find_issued(
    serial_number: str, requests: Iterable[Request]
) -> tuple[Issued | None, Issued | None]:
    """Return the certificate of a serial number, and the newest other of the same requester."""
    known = [(each.issued, each.username) for each in requests if each.issued is not None]
    found = next((each for each in known if each[0].serial_number == serial_number), None)
    if found is None:
        return None, None
    new, requester = found
    others = [each for each, username in known if each is not new and username == requester]
    return new, max(others, key=lambda each: each.not_before_us, default=None)


def _life_us(issued: Issued) -> int:
    return issued.not_after_us - issued.not_before_us


def next_ledger(
    ledger: Mapping[str, Any], issued: Sequence[Issued], session: SessionView, uri: str, now_us: int
) -> dict[str, Any]:
    """Return ``status.identity`` without its quarantine and what it says of earlier ones.

    The newest certificate becomes ``next`` and, once a stream uses it, ``current``; the one before
    stays for ten more minutes. Certificates that the ledger never held come in only as the newest.
    """
    following = {name: ledger[name] for name in _CERTIFICATES if ledger.get(name)}
    if issued and issued[0].serial_number not in _serials(following):
        following["next" if "current" in following else "current"] = _entry(issued[0])
    if session.link is Connectivity.CONNECTED and session.serial_number:
        _note_used(following, session.serial_number, now_us)
    previous = following.get("previous")
    if previous is not None and parse_instant(previous["acceptedUntil"]) < now_us:
        del following["previous"]
    return {"uri": uri, **following}


def _note_used(following: dict[str, Any], serial_number: str, now_us: int) -> None:
    """Note that a stream uses a certificate: the next one is current from then on."""
    if following.get("next", {}).get("serialNumber") == serial_number:
        until = format_instant(now_us + PREVIOUS_US)
        following["previous"] = {**following["current"], "acceptedUntil": until}
        following["current"] = following.pop("next")


def _serials(ledger: Mapping[str, Any]) -> set[str]:
    slots = (ledger.get(slot) for slot in _CERTIFICATES)
    return {each["serialNumber"] for each in slots if each}


def _entry(issued: Issued) -> dict[str, Any]:
    return {
        "serialNumber": issued.serial_number,
        "publicKeySHA256": issued.public_key_sha256,
        "notAfter": format_second(issued.not_after_us),
    }


def _duration(value: object) -> object:
    """Return a duration as seconds, anything else as it is."""
    seconds = duration_seconds(value)
    return value if seconds is None else seconds
