"""Certificates of peers, checked on every stream.

TLS has proven possession of the key and the signature of the CA, and nothing else: it accepts
leaves without extended key usage, with CA:TRUE, with several names or none, and it resumes
sessions of expired certificates. So this module checks all of that, in the DER itself and never in
gRPC's ``peer_uri``, which stops at a NUL byte.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from derops.errors import IdentityRefusedError
from derops.ids import AssetName, operator_uri, parse_asset_uri
from derops.schedules import SECOND_US

_PEM_BEGIN = b"-----BEGIN"


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentCertificate:
    """What a certificate that passed all checks says of its agent."""

    asset: AssetName
    serial_number: str
    """Lower-case hexadecimal without leading zeros, as in the ledger."""
    public_key_sha256: str
    """The hash of the DER of the SubjectPublicKeyInfo, lower-case hexadecimal."""
    not_after_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorCertificate:
    """What a certificate that passed all checks says of an operator."""

    public_key_sha256: str
    not_after_us: int


def authenticate_agent(certificate: bytes, trust_domain: str, now: datetime) -> AgentCertificate:
    """Check a client certificate, PEM or DER, as that of an agent.

    Raises:
        IdentityRefusedError: It is not one; never transient.
    """
    parsed, uri = _check(certificate, now)
    asset = parse_asset_uri(uri, trust_domain)
    if asset is None:
        raise IdentityRefusedError("NotAnAsset", f"URI {uri[:200]!r} names no asset of ours")
    return AgentCertificate(
        asset=asset,
        serial_number=f"{parsed.serial_number:x}",
        public_key_sha256=_public_key_sha256(parsed),
        not_after_us=_not_after_us(parsed),
    )


def authenticate_operator(
    certificate: bytes, trust_domain: str, now: datetime
) -> OperatorCertificate:
    """Check a client certificate, PEM or DER, as one of an operator; its key is checked later.

    Raises:
        IdentityRefusedError: It does not name the operator, whichever CA signed it.
    """
    parsed, uri = _check(certificate, now)
    if uri != operator_uri(trust_domain):
        raise IdentityRefusedError("NotTheOperator", f"URI {uri[:200]!r} is not the operator's")
    return OperatorCertificate(
        public_key_sha256=_public_key_sha256(parsed), not_after_us=_not_after_us(parsed)
    )


def public_key_sha256(pem: bytes) -> str:
    """Return the SHA-256 of the public key of the first certificate in a file.

    Raises:
        ValueError: There is none that can be read.
    """
    try:
        return _public_key_sha256(x509.load_pem_x509_certificate(pem))
    except (UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(str(error)) from error


def _public_key_sha256(parsed: x509.Certificate) -> str:
    key = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(key).hexdigest()


def _not_after_us(parsed: x509.Certificate) -> int:
    return int(parsed.not_valid_after_utc.timestamp()) * SECOND_US


def _check(certificate: bytes, now: datetime) -> tuple[x509.Certificate, str]:
    try:
        parsed = (
            x509.load_pem_x509_certificate(certificate)
            if certificate.startswith(_PEM_BEGIN)
            else x509.load_der_x509_certificate(certificate)
        )
        extensions = parsed.extensions
        uri = _only_uri(extensions)
        _check_usage(extensions)
    except (
        ValueError,
        x509.DuplicateExtension,
        x509.InvalidVersion,
        x509.UnsupportedGeneralNameType,
    ) as error:
        raise IdentityRefusedError("BadCertificate", f"cannot be read: {error}") from error
    if now < parsed.not_valid_before_utc:
        raise IdentityRefusedError(
            "CertificateNotYetValid", f"valid from {parsed.not_valid_before_utc.isoformat()}"
        )
    if now >= parsed.not_valid_after_utc:
        raise IdentityRefusedError(
            "CertificateExpired", f"valid until {parsed.not_valid_after_utc.isoformat()}"
        )
    return parsed, uri


def _only_uri(extensions: x509.Extensions) -> str:
    try:
        names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        names = []
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        raise IdentityRefusedError(
            "BadSubjectAlternativeName",
            f"there must be exactly one alternative name, a URI; found {len(names)}",
        )
    return names[0].value


def _check_usage(extensions: x509.Extensions) -> None:
    try:
        if extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
            raise IdentityRefusedError("CertificateOfAuthority", "CA is TRUE")
    except x509.ExtensionNotFound:
        pass  # RFC 5280: without the extension the key signs no certificates
    try:
        usages = list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:
        usages = []
    if usages != [ExtendedKeyUsageOID.CLIENT_AUTH]:
        raise IdentityRefusedError(
            "BadExtendedKeyUsage", "extended key usage must be exactly clientAuth"
        )
