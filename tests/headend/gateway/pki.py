"""A small CA whose certificates can be wrong in any way."""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from derops.wire.v1 import dispatch_pb2

TRUST_DOMAIN = "derops.test"
CLIENT = [ExtendedKeyUsageOID.CLIENT_AUTH]
SERVER = [ExtendedKeyUsageOID.SERVER_AUTH]


def uri_of(name: str, namespace: str = "pilot") -> str:
    return f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/derasset/{name}"


@dataclass(frozen=True)
class Leaf:
    certificate: x509.Certificate
    key: bytes

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def known(self) -> dispatch_pb2.KnownCertificate:
        spki = self.certificate.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return dispatch_pb2.KnownCertificate(
            serial_number=f"{self.certificate.serial_number:x}",
            public_key_sha256=hashlib.sha256(spki).hexdigest(),
        )


class Authority:
    def __init__(self, name: str) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def agent(self, name: str, **changes: object) -> Leaf:
        return self.leaf([x509.UniformResourceIdentifier(uri_of(name))], **changes)  # type: ignore[arg-type]

    def leaf(
        self,
        names: list[x509.GeneralName],
        *,
        usages: list[x509.ObjectIdentifier] | None = None,
        ca: bool = False,
        begins: timedelta = timedelta(hours=-1),
        ends: timedelta = timedelta(hours=1),
        common_name: str = "",
    ) -> Leaf:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        subject = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if common_name else []
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name(subject))
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        wanted = CLIENT if usages is None else usages
        if wanted:
            builder = builder.add_extension(x509.ExtendedKeyUsage(wanted), critical=False)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return Leaf(builder.sign(self.key, hashes.SHA256()), private)


def write_identity(directory: Path) -> Path:
    """Write tls.crt, tls.key and ca.crt, which fit; return the directory."""
    authority = Authority("derops")
    leaf = authority.leaf([x509.DNSName("derops-gateway")], usages=SERVER)
    for name, content in {
        "tls.crt": leaf.pem,
        "tls.key": leaf.key,
        "ca.crt": authority.pem,
    }.items():
        (directory / name).write_bytes(content)
    return directory
