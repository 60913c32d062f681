"""Certificates and CertificateRequests of cert-manager as the operator keeps them."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from derops_operator.resources.objects import (
    ASSET_LABEL,
    Meta,
    digest_of,
    read_conditions,
    read_meta,
    read_text,
    status_of_manifest,
)
from derops_operator.resources.pem import Csr, Issued

_CERT_MANAGER_GROUPS = ("", "cert-manager.io")
"""An empty group means cert-manager's own."""

_CERTIFICATE_FIELDS = (
    "secretName",
    "duration",
    "renewBefore",
    "uris",
    "usages",
    "privateKey",
    "issuerRef",
    "revisionHistoryLimit",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A CertificateRequest that says it is for one of our Certificates; anybody may say so."""

    meta: Meta
    asset_name: str
    certificate_uid: str
    """Of the Certificate that owns it."""

    username: str
    """Who created it, as the API server told cert-manager's webhook; nobody can change it."""

    duration_seconds: float | None
    issuer_kind: str
    issuer_name: str
    is_ca: bool
    usages: frozenset[str]
    csr: Csr | None
    issued: Issued | None
    ca_sha256: str
    """Of what the issuer said its CA is, as it wrote it; empty = nothing."""

    problem: str = ""
    """Why what is inside could not be read; it counts as absent."""

    conditions: tuple[Mapping[str, Any], ...]

    def condition(self, kind: str) -> Mapping[str, Any]:
        """Return the condition of this type, or an empty mapping."""
        return next((each for each in self.conditions if each.get("type") == kind), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A cert-manager Certificate of ours."""

    meta: Meta
    asset_name: str
    spec: Mapping[str, Any]
    conditions: tuple[Mapping[str, Any], ...]
    seen_us: int

    def is_true(self, kind: str) -> bool:
        """Tell whether the condition of this type is True."""
        return any(
            each.get("type") == kind and each.get("status") == "True" for each in self.conditions
        )


def read_request(
    manifest: Mapping[str, Any],
    csr: Csr | None = None,
    issued: Issued | None = None,
    problem: str = "",
) -> Request:
    """Read a CertificateRequest, but for what lies in its bytes.

    Nothing here comes from its annotations: whoever may create requests writes what they like.

    Args:
        manifest: Of the request.
        csr: What ``spec.request`` says.
        issued: What ``status.certificate`` says.
        problem: Why one of them could not be read.
    """
    metadata, spec = manifest["metadata"], manifest["spec"]
    issuer = spec["issuerRef"]
    authority = status_of_manifest(manifest).get("ca", "")
    ours = read_text(issuer.get("group", "")) in _CERT_MANAGER_GROUPS
    owner: Mapping[str, Any] = next(
        (
            each
            for each in metadata.get("ownerReferences", ())
            if each.get("kind") == "Certificate" and each.get("controller")
        ),
        {},
    )
    return Request(
        meta=read_meta(manifest),
        asset_name=read_text(metadata.get("labels", {}).get(ASSET_LABEL, "")),
        certificate_uid=read_text(owner.get("uid", "")),
        username=read_text(spec.get("username", "")),
        duration_seconds=duration_seconds(spec.get("duration")),
        issuer_kind=read_text(issuer.get("kind", "Issuer")) if ours else "",
        issuer_name=read_text(issuer["name"]),
        is_ca=bool(spec.get("isCA", False)),
        usages=frozenset(read_text(each) for each in spec.get("usages", ())),
        csr=csr,
        issued=issued,
        ca_sha256=digest_of(authority) if isinstance(authority, str) and authority else "",
        problem=problem,
        conditions=read_conditions(status_of_manifest(manifest)),
    )


def read_certificate(manifest: Mapping[str, Any], seen_us: int) -> Certificate:
    """Read a Certificate as it was at ``seen_us``; Certificates are not watched."""
    spec = manifest["spec"]
    return Certificate(
        meta=read_meta(manifest),
        asset_name=read_text(manifest["metadata"].get("labels", {}).get(ASSET_LABEL, "")),
        spec={name: spec[name] for name in _CERTIFICATE_FIELDS if name in spec},
        conditions=read_conditions(status_of_manifest(manifest)),
        seen_us=seen_us,
    )


def duration_seconds(value: object) -> float | None:
    """Return the seconds of a Go duration in hours, minutes and seconds; None = it is none.

    The API server may write 3600s as 1h0m0s.
    """
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(value))


_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)([hms])")

_DURATION = re.compile(f"(?:{_PART.pattern}){{1,3}}")

_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
