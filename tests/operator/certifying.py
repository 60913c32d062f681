"""Signing requests and certificates, made by a throw-away authority."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from tests.operator.making import asset, at, metadata

from derops_operator.reconciling.identity import wanted_certificate
from derops_operator.resources.certificates import Certificate, Request, read_certificate
from derops_operator.resources.instants import format_second
from derops_operator.resources.manifests import read_fact
from derops_operator.resources.objects import Kind

CERT_MANAGER = "system:serviceaccount:cert-manager:cert-manager"
URI = "spiffe://derops.test/ns/pilot/derasset/battery"
_CA_KEY = ec.generate_private_key(ec.SECP256R1())
_KEY = ec.generate_private_key(ec.SECP256R1())


def csr(
    *names: x509.GeneralName,
    common_name: str = "",
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = _KEY,
    authority: bool = False,
    extra: x509.ExtensionType | None = None,
) -> str:
    """Return a request as a CertificateRequest carries it."""
    subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name(subject))
    san = names or (x509.UniformResourceIdentifier(URI),)
    builder = builder.add_extension(x509.SubjectAlternativeName(san), critical=not common_name)
    if authority:
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    if extra is not None:
        builder = builder.add_extension(extra, critical=False)
    pem = builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return base64.b64encode(pem).decode()


def certificate_pem(
    serial: int,
    uri: str = URI,
    days: int = 30,
    key: ec.EllipticCurvePrivateKey = _KEY,
    start: float = 0,
) -> str:
    """Return a certificate as a CertificateRequest carries it."""
    begin = datetime.fromtimestamp(at(start) / 1e6, UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")]))
        .public_key(key.public_key())
        .serial_number(serial)
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True
        )
        .sign(_CA_KEY, hashes.SHA256())
    )
    return base64.b64encode(built.public_bytes(Encoding.PEM)).decode()


def certificate(*, ready: bool = True, seen: float = 0) -> Certificate:
    """Return the asset's Certificate as it should be."""
    wanted = wanted_certificate(asset(), "derops.test", "derops-agent")
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    manifest = {
        "metadata": metadata("battery-derops-agent", labels=wanted["metadata"]["labels"]),
        "spec": wanted["spec"],
        "status": {"conditions": conditions},
    }
    return read_certificate(manifest, at(seen))


def request(
    number: int = 1,
    *,
    created: float = 0,
    serial: int | None = None,
    request: str | None = None,
    approved: bool | None = None,
    owner_uid: str = "uid-battery-derops-agent",
    issued_uri: str = URI,
    issued_key: ec.EllipticCurvePrivateKey = _KEY,
    issued: float = 0,
    days: int = 30,
    annotations: dict[str, str] | None = None,
    name: str = "",
    **spec: Any,
) -> Request:
    """Return a CertificateRequest for the asset's Certificate; with a serial it is issued."""
    approved = serial is not None if approved is None else approved
    status: dict[str, Any] = {"conditions": []}
    if approved:
        status["conditions"].append({"type": "Approved", "status": "True"})
    if serial is not None:
        status["certificate"] = certificate_pem(
            serial, issued_uri, days, key=issued_key, start=issued
        )
    found = read_fact(
        Kind.REQUEST,
        {
            "metadata": metadata(
                name or f"battery-derops-agent-{number}",
                labels={"derops.io/asset": "battery"},
                annotations=annotations or {},
                creationTimestamp=format_second(at(created)),
                ownerReferences=[
                    {"kind": "Certificate", "controller": True, "uid": owner_uid, "name": "x"}
                ],
            ),
            "spec": {
                "request": request or csr(),
                "username": CERT_MANAGER,
                "duration": "720h0m0s",
                "usages": ["client auth", "digital signature"],
                "issuerRef": {"kind": "ClusterIssuer", "name": "derops-agent"},
                **spec,
            },
            "status": status,
        },
        0,
    )
    assert isinstance(found, Request)
    return found


def answered(subject: Request, kind: str, message: str = "") -> Request:
    """Return a request with one more condition."""
    condition = {"type": kind, "status": "True", "message": message}
    return replace(subject, conditions=(*subject.conditions, condition))


def end_after(days: int = 30) -> str:
    """Return the end of a certificate made here."""
    return format_second(at(days * 86400))
