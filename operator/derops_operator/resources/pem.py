"""Certificates and signing requests as facts: parsed once, no decision here.

Anybody chooses these bytes, and a panic in the parser is not even an ``Exception``: whatever is
thrown here, ``manifests.py`` catches.
"""

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from derops_operator.resources.instants import to_us

_EXPECTED_EXTENSIONS = frozenset(
    {
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
    }
)

_MOST_OF_A_REQUEST = 16 * 1024
"""Characters of a request that is read. One of ours has 700; a key of a megabyte takes minutes."""

_MOST_OF_A_CHAIN = 128 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Csr:
    """What a signing request asks for."""

    signature_valid: bool
    """Not looked at where the key is none of ours."""

    subject_empty: bool
    is_p256: bool
    is_ca: bool
    uris: tuple[str, ...]
    other_names: int
    """Subject alternative names that are not URIs."""

    dns_names: tuple[str, ...]

    unexpected_extensions: tuple[str, ...]
    public_key_sha256: str
    """Of the DER of the SubjectPublicKeyInfo, lower-case hexadecimal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate as the ledger records it."""

    serial_number: str
    """Lower-case hexadecimal without leading zeros."""

    public_key_sha256: str
    uris: tuple[str, ...]
    not_before_us: int
    not_after_us: int


# Branches: a filter for each kind of name and of extension.
def read_csr(encoded: str) -> Csr:
    """Read the base64 of a PEM request."""
    request = x509.load_pem_x509_csr(_decoded(encoded, _MOST_OF_A_REQUEST))
    key = request.public_key()
    is_p256 = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
    extensions = {extension.oid: extension.value for extension in request.extensions}
    san = _alternative_names(extensions.values())
    constraints = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
    return Csr(
        signature_valid=not is_p256 or request.is_signature_valid,
        subject_empty=not list(request.subject),
        is_p256=is_p256,
        is_ca=isinstance(constraints, x509.BasicConstraints) and constraints.ca,
        uris=tuple(name.value for name in san if _is_uri(name)),
        other_names=sum(not _is_uri(name) for name in san),
        dns_names=tuple(name.value for name in san if isinstance(name, x509.DNSName)),
        unexpected_extensions=tuple(
            oid.dotted_string for oid in extensions if oid not in _EXPECTED_EXTENSIONS
        ),
        public_key_sha256=_fingerprint(key),
    )


def read_issued(encoded: str) -> Issued:
    """Read the first certificate of a base64 PEM chain."""
    certificate = x509.load_pem_x509_certificates(_decoded(encoded, _MOST_OF_A_CHAIN))[0]
    san = _alternative_names(extension.value for extension in certificate.extensions)
    return Issued(
        serial_number=f"{certificate.serial_number:x}",
        public_key_sha256=_fingerprint(certificate.public_key()),
        uris=tuple(name.value for name in san if _is_uri(name)),
        not_before_us=to_us(certificate.not_valid_before_utc),
        not_after_us=to_us(certificate.not_valid_after_utc),
    )


def _decoded(encoded: str, most: int) -> bytes:
    if len(encoded) > most:
        raise ValueError(f"{len(encoded)} characters of base64; at most {most} are read")
    return base64.b64decode(encoded, validate=True)


def _alternative_names(extensions: Iterable[x509.ExtensionType]) -> list[x509.GeneralName]:
    """Return the subject alternative names; x509 refuses an extension that is there twice."""
    found = (each for each in extensions if isinstance(each, x509.SubjectAlternativeName))
    return [name for names in found for name in names]


def _is_uri(name: x509.GeneralName) -> bool:
    return isinstance(name, x509.UniformResourceIdentifier)


def _fingerprint(key: CertificatePublicKeyTypes) -> str:
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
