"""Issuers and the identities of operator and headend: the chart's manifests, by cert-manager."""

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tests.stack import pki, places
from tests.stack.controlplane import CERT_MANAGER, ControlPlane
from tests.stack.mounts import write_mount
from tests.stack.processes import StackError

CHART_FILES = places.REPOSITORY / "charts" / "derops" / "files"
NAMESPACE = "derops-system"
SERVICE_ACCOUNT = "derops-operator"
OPERATOR_USER = f"system:serviceaccount:{NAMESPACE}:{SERVICE_ACCOUNT}"
CERT_MANAGER_USER = f"system:serviceaccount:{CERT_MANAGER}:{CERT_MANAGER}"

OPERATOR_SECRET = (NAMESPACE, "derops-operator-tls")
"""Namespace and name of the Secret with the operator's key on the control port."""

_ENFORCED_SECONDS = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Directories and files as the pods of operator and gateway would see them mounted."""

    agent_port: Path
    control_port: Path
    operator: Path
    operator_certificate: Path
    """At the gateway: the operator's certificate without its key."""

    agent_ca: Path
    server_ca: Path

    def follow(self, secrets: Mapping[tuple[str, str], Mapping[str, bytes]]) -> None:
        """Bring the mounts of the operator's Secret up to date; keys are namespace and name."""
        data = secrets.get(OPERATOR_SECRET)
        if data and data.get("tls.crt"):
            write_mount(self.operator, data)
            write_mount(self.operator_certificate.parent, {"tls.crt": data["tls.crt"]})


def chart_manifests(name: str, trust_domain: str) -> list[Any]:
    """Return the documents of one of the chart's files, with its values filled in."""
    text = (CHART_FILES / name).read_text(encoding="utf-8")
    values = {
        ".Release.Namespace": NAMESPACE,
        ".Values.trustDomain": trust_domain,
        ".Values.operatorUser": OPERATOR_USER,
        ".Values.certManagerUser": CERT_MANAGER_USER,
    }
    for value, filled in values.items():
        text = text.replace(f"{{{{ {value} }}}}", filled)
    return list(yaml.safe_load_all(text))


def install_issuers(control_plane: ControlPlane) -> None:
    """Create the three CAs with their issuers, wait until all can sign, and shut strangers out."""
    control_plane.apply(*chart_manifests("pki-issuers.yaml", trust_domain=""))
    control_plane.kubectl(
        "wait", "--for=condition=Ready", "clusterissuer", "--all", "--timeout=60s"
    )
    for namespace in (NAMESPACE, CERT_MANAGER):
        control_plane.kubectl(
            "wait", "--for=condition=Ready", "issuer", "--all", "-n", namespace, "--timeout=60s"
        )
    install_policies(control_plane)


def install_policies(control_plane: ControlPlane) -> None:
    """Apply the admission policies and wait until the API server enforces all of them."""
    control_plane.apply(*chart_manifests("admission-policies.yaml", trust_domain=""))
    waiting = _forbidden()
    deadline = time.monotonic() + _ENFORCED_SECONDS
    while waiting:
        try:
            control_plane.kubectl(
                "create", "--dry-run=server", "-f", "-", stdin=json.dumps(waiting[-1])
            )
        except StackError as refusal:
            if "ValidatingAdmissionPolicy" not in str(refusal):
                raise
            waiting.pop()
        if waiting and time.monotonic() > deadline:
            raise StackError(f"the admission policies do not refuse a {waiting[-1]['kind']}")


def _forbidden() -> list[dict[str, Any]]:
    """Return an object of each kind that the policies guard and that nobody may create."""
    issuer = {"name": "derops-agent", "kind": "ClusterIssuer", "group": "cert-manager.io"}
    certmanager = {
        "apiVersion": "cert-manager.io/v1",
        "metadata": {"name": "probe", "namespace": "default"},
    }
    csr = pki.signing_request()
    return [
        {
            **certmanager,
            "kind": "Certificate",
            "spec": {"secretName": "probe", "uris": ["spiffe://probe"], "issuerRef": issuer},
        },
        {
            **certmanager,
            "kind": "CertificateRequest",
            "spec": {"request": csr, "issuerRef": issuer},
        },
        {
            "apiVersion": "certificates.k8s.io/v1",
            "kind": "CertificateSigningRequest",
            "metadata": {"name": "probe"},
            "spec": {
                "request": csr,
                "signerName": "clusterissuers.cert-manager.io/derops-agent",
                "usages": ["client auth"],
            },
        },
    ]


def issue(control_plane: ControlPlane, trust_domain: str, directory: Path) -> Identities:
    """Let cert-manager issue the identities and mount them below ``directory``."""
    install_issuers(control_plane)
    control_plane.apply(*chart_manifests("pki-certificates.yaml", trust_domain))
    control_plane.kubectl(
        "wait", "--for=condition=Ready", "certificate", "--all", "-n", NAMESPACE, "--timeout=60s"
    )

    def mount(namespace: str, secret: str, *keys: str, folder: str = "") -> Path:
        target = directory / (folder or secret)
        data = secret_data(control_plane, namespace, secret)
        write_mount(target, {key: data[key] for key in keys or data})
        return target

    return Identities(
        agent_port=mount(NAMESPACE, "derops-gateway-tls"),
        control_port=mount(NAMESPACE, "derops-gateway-control-tls"),
        operator=mount(*OPERATOR_SECRET),
        operator_certificate=mount(*OPERATOR_SECRET, "tls.crt", folder="operator-certificate")
        / "tls.crt",
        agent_ca=mount(CERT_MANAGER, "derops-agent-ca", "ca.crt") / "ca.crt",
        server_ca=mount(NAMESPACE, "derops-server-ca", "ca.crt") / "ca.crt",
    )


def operator_kubeconfig(control_plane: ControlPlane) -> str:
    """Return a kubeconfig of the chart's ServiceAccount, with the chart's rules and no more."""
    rules = chart_manifests("operator-rules.yaml", trust_domain="")[0]
    rbac = "rbac.authorization.k8s.io"
    name = {"name": SERVICE_ACCOUNT}
    account = {"kind": "ServiceAccount", **name, "namespace": NAMESPACE}
    control_plane.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": name | {"namespace": NAMESPACE}},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": name, "rules": rules},
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": name,
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": SERVICE_ACCOUNT},
            "subjects": [account],
        },
    )
    return control_plane.service_account_kubeconfig(NAMESPACE, SERVICE_ACCOUNT)


def secret_data(control_plane: ControlPlane, namespace: str, name: str) -> dict[str, bytes]:
    """Return what a Secret holds."""
    secret = json.loads(control_plane.kubectl("get", "secret", name, "-n", namespace, "-o", "json"))
    return {key: base64.b64decode(value) for key, value in secret["data"].items()}
