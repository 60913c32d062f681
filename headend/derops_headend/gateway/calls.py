"""What both ports need from gRPC's calls."""

from typing import Any

import grpc

from derops.errors import IdentityRefusedError

Context = grpc.aio.ServicerContext[Any, Any]


def peer_certificate(context: Context) -> bytes:
    """Return the PEM of a peer's certificate.

    Raises:
        IdentityRefusedError: There is none, or the connection has an older TLS than 1.3; gRPC has
            no setting for the least version.
    """
    facts = context.auth_context()
    versions = list(facts.get("ssl_tls_version", []))
    if versions != [b"TLSv1.3"]:
        raise IdentityRefusedError("TLSVersionTooLow", f"TLS 1.3 is required, found {versions}")
    certificates = list(facts.get("x509_pem_cert", []))
    if len(certificates) != 1:
        raise IdentityRefusedError("NoCertificate", "there is no client certificate")
    return certificates[0]
