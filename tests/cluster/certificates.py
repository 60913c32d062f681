"""Certificates as PEM: in Secrets, and one after the other in a file."""

import base64

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from tests.cluster.cluster import Cluster


def secret(cluster: Cluster, namespace: str, name: str) -> bytes:
    """Return the certificate in a Secret, without those that may follow it, as PEM."""
    found = cluster.get("secret", name, "-n", namespace)
    return first(base64.b64decode(found["data"]["tls.crt"]))


def split(text: bytes) -> list[bytes]:
    """Return each certificate of a text that may have several."""
    return [_as_pem(each) for each in x509.load_pem_x509_certificates(text)]


def first(text: bytes) -> bytes:
    """Return the first certificate of a text."""
    return split(text)[0]


def _as_pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)
