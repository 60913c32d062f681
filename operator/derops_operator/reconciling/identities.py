"""The identity of an asset: its Certificate, which requests are signed, and the ledger."""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from derops.ids import AssetName
from derops.schedules import SECOND_US
from derops_operator.certificates import Issued
from derops_operator.facts import ASSET_LABEL, MANAGED_BY, Asset, Certificate, Request
from derops_operator.fleet import Link, SessionView
from derops_operator.instants import format_instant, format_second, parse_instant

PREVIOUS_US = 600 * SECOND_US
"""How long the certificate before the current one is accepted: a mounted Secret may lag."""

_USAGES = ["client auth", "digital signature"]
_CERTIFICATES = ("current", "next", "previous")
_NAME_LIMIT = 63


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
    requests: Iterable[Request], asset: Asset, certificate: Certificate | None
) -> list[Request]:
    """Return the requests made for the asset's Certificate as it exists, newest first."""
    name = certificate_name(asset.meta.name)
    own = [
        each
        for each in requests
        if certificate is not None
        and each.certificate_name == name
        and each.certificate_uid == certificate.meta.uid
    ]
    return sorted(own, key=lambda each: each.revision, reverse=True)


def revoke(ledger: Mapping[str, Any], own: Iterable[Request]) -> dict[str, Any]:
    """Return ``status.identity`` without any certificate, and without a way back for those of now.

    What counts is when their requests were made, by the API server's clock. A request that is not
    issued yet, or came after those that the ledger knows, is for a new key.
    """
    kept = {name: ledger[name] for name in ledger if name not in _CERTIFICATES}
    serials = _serials({name: ledger[name] for name in _CERTIFICATES if ledger.get(name)})
    issued = [each for each in own if each.issued is not None]
    known = [each for each in issued if each.issued and each.issued.serial_number in serials]
    created = [each.meta.created_us for each in known or issued]
    if created:
        kept["revokedBefore"] = format_second(max(created) + SECOND_US)
    return kept


def refuse_to_sign(request: Request, uri: str, issuer: str) -> str:
    """Return why a request must not be signed; empty = it may be."""
    csr = request.csr
    if csr is None:
        return "the request cannot be read"
    problems = {
        f"it is for {request.issuer_kind} {request.issuer_name}": (
            (request.issuer_kind, request.issuer_name) != ("ClusterIssuer", issuer)
        ),
        "its signature is not valid": not csr.signature_valid,
        "its key is not EC P-256": not csr.is_p256,
        "it asks to be a certificate authority": csr.is_ca or request.is_ca,
        "its subject is not empty": not csr.subject_empty,
        f"its names are not exactly {uri}": csr.uris != (uri,) or csr.other_names > 0,
        f"its usages are not exactly {', '.join(_USAGES)}": request.usages != set(_USAGES),
        f"it has extensions {', '.join(csr.unexpected_extensions)}": bool(
            csr.unexpected_extensions
        ),
    }
    return "; ".join(problem for problem, found in problems.items() if found)


def next_ledger(
    ledger: Mapping[str, Any], requests: list[Request], session: SessionView, uri: str, now_us: int
) -> dict[str, Any]:
    """Return ``status.identity`` without its quarantine and what it says of earlier ones.

    The newest certificate becomes ``next`` and, once a stream uses it, ``current``; the one before
    stays for ten more minutes. Certificates that the ledger never held come in only as the newest.
    """
    following = {name: ledger[name] for name in _CERTIFICATES if ledger.get(name)}
    newest = next((each.issued for each in requests if _is_issued(each, uri)), None)
    if newest is not None and newest.serial_number not in _serials(following):
        following["next" if "current" in following else "current"] = _entry(newest)
    used = session.serial_number if session.link is Link.CONNECTED else ""
    if used and following.get("next", {}).get("serialNumber") == used:
        until = format_instant(now_us + PREVIOUS_US)
        following["previous"] = {**following["current"], "acceptedUntil": until}
        following["current"] = following.pop("next")
    previous = following.get("previous")
    if previous is not None and parse_instant(previous["acceptedUntil"]) < now_us:
        del following["previous"]
    return {"uri": uri, **following}


def _serials(ledger: Mapping[str, Any]) -> set[str]:
    return {each["serialNumber"] for each in ledger.values()}


def _is_issued(request: Request, uri: str) -> bool:
    issued = request.issued
    return (
        issued is not None
        and issued.uris == (uri,)
        and request.condition("Approved").get("status") == "True"
    )


def _entry(issued: Issued) -> dict[str, Any]:
    return {
        "serialNumber": issued.serial_number,
        "publicKeySHA256": issued.public_key_sha256,
        "notAfter": format_second(issued.not_after_us),
    }


def _duration(value: object) -> object:
    """Return a Go duration as seconds: the API server may write 3600s as 1h0m0s."""
    if not isinstance(value, str) or not value[:1].isdigit():
        return value
    seconds, number = 0.0, ""
    for character in value:
        if character.isdigit() or character == ".":
            number += character
        elif character in _SECONDS and number:
            seconds += float(number) * _SECONDS[character]
            number = ""
        else:
            return value
    return seconds if not number else value


_SECONDS = {"h": 3600, "m": 60, "s": 1}
