"""The one authority of all tests: its certificates can be good, or wrong in any way."""

import base64
import hashlib
import ipaddress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from derops.wire.v1 import dispatch_pb2

TRUST_DOMAIN = "derops.test"
CLIENT = [ExtendedKeyUsageOID.CLIENT_AUTH]
SERVER = [ExtendedKeyUsageOID.SERVER_AUTH]
LIFETIME = timedelta(days=30)
"""Of an authority and of what a server shows: longer than any stack is kept."""


def uri_of(name: str, namespace: str = "pilot") -> str:
    return f"spiffe://{TRUST_DOMAIN}/ns/{namespace}/derasset/{name}"


@dataclass(frozen=True)
class Leaf:
    """A certificate and its key, as PEM."""

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

    @property
    def files(self) -> dict[str, bytes]:
        """Return the content of the files that a Secret of it has, by name."""
        return {"tls.crt": self.pem, "tls.key": self.key}

    def write(self, directory: Path) -> None:
        """Write its files into a directory, which is made."""
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in self.files.items():
            (directory / name).write_bytes(content)


class Authority:
    def __init__(self, name: str) -> None:
        self.name = _common_name(name)
        self.key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(self.name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + LIFETIME)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def agent(self, name: str, **changes: object) -> Leaf:
        return self.leaf([x509.UniformResourceIdentifier(uri_of(name))], **changes)  # type: ignore[arg-type]

    def server(self, names: list[str], addresses: list[str] | None = None) -> Leaf:
        """Issue a server's certificate for host names and IP addresses."""
        alternatives: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        alternatives += [x509.IPAddress(ipaddress.ip_address(each)) for each in addresses or []]
        return self.leaf(alternatives, usages=SERVER, common_name=names[0], ends=LIFETIME)

    def client(self, user: str, group: str = "") -> Leaf:
        """Issue a client's certificate; Kubernetes takes user and group from the subject."""
        return self.leaf([], common_name=user, organization=group, ends=LIFETIME)

    def leaf(
        self,
        names: list[x509.GeneralName],
        *,
        usages: list[x509.ObjectIdentifier] | None = None,
        ca: bool = False,
        begins: timedelta = timedelta(hours=-1),
        ends: timedelta = timedelta(hours=1),
        common_name: str = "",
        organization: str = "",
    ) -> Leaf:
        """Issue a certificate; by default it is a client's."""
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_common_name(common_name, organization))
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


def _common_name(name: str, organization: str = "") -> x509.Name:
    given = {NameOID.ORGANIZATION_NAME: organization, NameOID.COMMON_NAME: name}
    return x509.Name([x509.NameAttribute(kind, text) for kind, text in given.items() if text])


def write_identity(
    directory: Path,
    name: str = "derops-gateway",
    usages: list[x509.ObjectIdentifier] = SERVER,
) -> Path:
    """Write tls.crt, tls.key and ca.crt, which fit; return the directory."""
    authority = Authority("derops")
    authority.leaf([x509.DNSName(name)], usages=usages).write(directory)
    (directory / "ca.crt").write_bytes(authority.pem)
    return directory


def service_account_key() -> str:
    """Return a new key for signing the tokens of ServiceAccounts, as PEM."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    ).decode()


def signing_request(*uris: str) -> str:
    """Return a request for these URIs under a new key, in base64 as Kubernetes carries it."""
    names = [x509.UniformResourceIdentifier(uri) for uri in uris or ("spiffe://probe",)]
    request = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(x509.SubjectAlternativeName(names), critical=True)
        .sign(ec.generate_private_key(ec.SECP256R1()), hashes.SHA256())
    )
    return base64.b64encode(request.public_bytes(serialization.Encoding.PEM)).decode()
