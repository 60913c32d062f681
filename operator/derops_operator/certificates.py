"""Certificates and signing requests as facts: parsed once, no decision here."""

import base64
import binascii
import hashlib
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtensionOID

from derops_operator.instants import parse_instant

_EXPECTED_EXTENSIONS = frozenset(
    {
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.BASIC_CONSTRAINTS,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Csr:
    """What a signing request asks for."""

    signature_valid: bool
    subject_empty: bool
    is_p256: bool
    is_ca: bool
    uris: tuple[str, ...]
    other_names: int
    """Subject alternative names that are not URIs."""

    unexpected_extensions: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Issued:
    """A certificate as the ledger records it."""

    serial_number: str
    """Lower-case hexadecimal without leading zeros."""

    public_key_sha256: str
    """Of the DER of the SubjectPublicKeyInfo, lower-case hexadecimal."""

    uris: tuple[str, ...]
    not_after_us: int


def read_csr(encoded: str) -> Csr | None:
    """Read the base64 of a PEM request; None where it is not one."""
    try:
        request = x509.load_pem_x509_csr(base64.b64decode(encoded, validate=True))
        key = request.public_key()
        extensions = {extension.oid: extension.value for extension in request.extensions}
        names = extensions.get(ExtensionOID.SUBJECT_ALTERNATIVE_NAME)
        san = list(names) if isinstance(names, x509.SubjectAlternativeName) else []
        constraints = extensions.get(ExtensionOID.BASIC_CONSTRAINTS)
        return Csr(
            signature_valid=request.is_signature_valid,
            subject_empty=not list(request.subject),
            is_p256=isinstance(key, ec.EllipticCurvePublicKey)
            and isinstance(key.curve, ec.SECP256R1),
            is_ca=isinstance(constraints, x509.BasicConstraints) and constraints.ca,
            uris=tuple(name.value for name in san if _is_uri(name)),
            other_names=sum(not _is_uri(name) for name in san),
            unexpected_extensions=tuple(
                oid.dotted_string for oid in extensions if oid not in _EXPECTED_EXTENSIONS
            ),
        )
    except (
        ValueError,
        binascii.Error,
        UnsupportedAlgorithm,
        InvalidSignature,
        x509.DuplicateExtension,
        x509.UnsupportedGeneralNameType,
    ):
        return None


def read_issued(encoded: str) -> Issued | None:
    """Read the first certificate of a base64 PEM chain; None where there is none."""
    try:
        certificate = x509.load_pem_x509_certificates(base64.b64decode(encoded, validate=True))[0]
        names = [
            extension.value
            for extension in certificate.extensions
            if isinstance(extension.value, x509.SubjectAlternativeName)
        ]
        return Issued(
            serial_number=f"{certificate.serial_number:x}",
            public_key_sha256=_fingerprint(certificate.public_key()),
            uris=tuple(name.value for san in names for name in san if _is_uri(name)),
            not_after_us=parse_instant(certificate.not_valid_after_utc.isoformat()),
        )
    except (ValueError, IndexError, binascii.Error, UnsupportedAlgorithm, x509.DuplicateExtension):
        return None


def _is_uri(name: x509.GeneralName) -> bool:
    return isinstance(name, x509.UniformResourceIdentifier)


def _fingerprint(key: CertificatePublicKeyTypes) -> str:
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()
