"""A person with rights in one namespace, as a token of a ServiceAccount gives them."""

import base64
import json
import subprocess
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from tests.stack.controlplane import ControlPlane

RIGHTS = {
    "derops.io": ["derassets", "dispatches"],
    "cert-manager.io": ["certificaterequests"],
}
VERBS = ["create", "get", "list", "update", "patch", "delete"]
OURS = {"app.kubernetes.io/managed-by": "derops"}


class Tenant:
    """Whoever may create DERAssets, Dispatches and CertificateRequests in one namespace."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.namespace = namespace
        self._control_plane = control_plane
        control_plane.kubectl("create", "namespace", namespace)
        control_plane.kubectl("create", "serviceaccount", "tenant", "-n", namespace)
        rules = [
            {"apiGroups": [group], "resources": kinds, "verbs": VERBS}
            for group, kinds in RIGHTS.items()
        ]
        rbac = "rbac.authorization.k8s.io"
        metadata = {"name": "tenant", "namespace": namespace}
        subject = {"kind": "ServiceAccount", "name": "tenant", "namespace": namespace}
        control_plane.apply(
            {"apiVersion": f"{rbac}/v1", "kind": "Role", "metadata": metadata, "rules": rules},
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": metadata,
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "tenant"},
                "subjects": [subject],
            },
        )
        self._kubeconfig = control_plane.service_account_kubeconfig(namespace, "tenant")

    @property
    def user(self) -> str:
        """Its name to the API server."""
        return f"system:serviceaccount:{self.namespace}:tenant"

    def kubectl(self, *arguments: str, stdin: str | None = None) -> tuple[bool, str]:
        """Run kubectl in the namespace; return whether that was allowed, and what it said."""
        answer = subprocess.run(
            [
                self._control_plane.binaries.kubectl,
                "--kubeconfig", self._kubeconfig, "-n", self.namespace, *arguments,
            ],
            input=stdin, capture_output=True, text=True, check=False,
        )  # fmt: skip
        return answer.returncode == 0, answer.stdout + answer.stderr

    def create(self, manifest: dict[str, Any]) -> tuple[bool, str]:
        """Create an object; return whether the API server took it, and what it said."""
        manifest["metadata"]["namespace"] = self.namespace
        return self.kubectl("create", "-f", "-", stdin=json.dumps(manifest))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        taken, text = self.kubectl("get", kind, name, "-o", "json")
        assert taken, text
        found: dict[str, Any] = json.loads(text)
        return found


def signing_request(
    uri: str, key: ec.EllipticCurvePrivateKey | None = None, *, version: int = 0
) -> str:
    """Return a signing request as a CertificateRequest carries it; its version should be 0."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    built = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True
        )
        .sign(key, hashes.SHA256())
    )
    der = _with_version(built.tbs_certrequest_bytes, version)
    signature = key.sign(der, ec.ECDSA(hashes.SHA256()))
    return _encoded(_sequence(der + _ECDSA_SHA256 + _bits(signature)))


_ECDSA_SHA256 = bytes.fromhex("300a06082a8648ce3d040302")


def _with_version(der: bytes, version: int) -> bytes:
    place = der.index(b"\x02\x01\x00")
    return der[:place] + bytes([2, 1, version]) + der[place + 3 :]


def _sequence(content: bytes) -> bytes:
    size = len(content)
    length = b"\x81" + bytes([size]) if size < 256 else b"\x82" + size.to_bytes(2)
    return b"\x30" + length + content


def _bits(content: bytes) -> bytes:
    return bytes([3, len(content) + 1, 0]) + content


def _encoded(der: bytes) -> str:
    body = base64.encodebytes(der).decode()
    pem = f"-----BEGIN CERTIFICATE REQUEST-----\n{body}-----END CERTIFICATE REQUEST-----\n"
    return base64.b64encode(pem.encode()).decode()


def certificate_request(
    name: str, request: str, *, issuer: str = "nobody", asset: str = "battery", **metadata: Any
) -> dict[str, Any]:
    """Return a CertificateRequest that says it belongs to an asset."""
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "CertificateRequest",
        "metadata": {"name": name, "labels": {**OURS, "derops.io/asset": asset}, **metadata},
        "spec": {
            "request": request,
            "duration": "720h0m0s",
            "usages": ["client auth", "digital signature"],
            "issuerRef": {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": issuer},
        },
    }
