"""Certificates and keys, ours and those of whom we trust, from files that others write.

gRPC ends the process over an empty certificate and says nothing of a key that does not fit. So
files are read and checked here before gRPC gets them.
"""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)

_SPKI = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


@dataclass(frozen=True, slots=True, kw_only=True)
class IdentityFiles:
    """Files as they were read; all PEM."""

    key: bytes
    certificate: bytes
    ca: bytes
    """Certificates of the authorities; one of them must have issued the peer's."""

    @property
    def ends(self) -> datetime:
        """When the certificate expires; it may have expired already."""
        return x509.load_pem_x509_certificates(self.certificate)[0].not_valid_after_utc

    @classmethod
    def read(cls, directory: Path, ca_file: Path) -> "IdentityFiles":
        """Read ``tls.key`` and ``tls.crt`` of a directory, and a file of authorities; blocks.

        Raises:
            OSError: One is not there, or may not be read.
            ValueError: One holds nothing, or not what it should, or the key is another's.
        """
        key_file, certificate_file = directory / "tls.key", directory / "tls.crt"
        read = cls(key=_read(key_file), certificate=_read(certificate_file), ca=_read(ca_file))
        certificate = _certificates(certificate_file, read.certificate)[0]
        _certificates(ca_file, read.ca)
        try:
            own = load_pem_private_key(read.key, password=None).public_key().public_bytes(*_SPKI)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            raise ValueError(f"{key_file} holds no private key without a password") from error
        if certificate.public_key().public_bytes(*_SPKI) != own:
            raise ValueError(f"{key_file} is not the key of {certificate_file}")
        return read


def _read(file: Path) -> bytes:
    content = file.read_bytes()
    if not content.strip():
        raise ValueError(f"{file} is empty: did cert-manager fill the Secret?")
    return content


def _certificates(file: Path, content: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(content)
    except (ValueError, x509.InvalidVersion) as error:
        raise ValueError(f"{file} holds no certificate in PEM") from error
