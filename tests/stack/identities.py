"""Issuers, and the identities of our programs: the chart's manifests, by cert-manager."""

import base64
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import pki
from tests.stack import chart
from tests.stack.controlplane import CERT_MANAGER, ControlPlane
from tests.stack.mounts import write_mount
from tests.stack.processes import StackError

CHART_FILES = chart.CHART / "files"
NAMESPACE = chart.NAMESPACE
OPERATOR_USER = f"system:serviceaccount:{NAMESPACE}:derops-operator"
API_USER = f"system:serviceaccount:{NAMESPACE}:derops-api"
CERT_MANAGER_USER = f"system:serviceaccount:{CERT_MANAGER}:{CERT_MANAGER}"

OPERATOR_SECRET = (NAMESPACE, "derops-operator-tls")
"""Namespace and name of the Secret with the operator's key on the control port."""

AGENT_PORT_SECRET = (NAMESPACE, "derops-gateway-tls")
CONTROL_PORT_SECRET = (NAMESPACE, "derops-gateway-control-tls")
API_SECRET = (NAMESPACE, "derops-api-tls")
SERVER_CA_SECRET = (NAMESPACE, "derops-server-ca")

SERVER_CA, AGENT_CA = "derops-server-ca", "derops-agent-ca"
"""Names of the ConfigMaps that the operator keeps."""

Named = tuple[str, str]
"""Namespace and name."""

_ENFORCED_SECONDS = 30.0
_UNSERVED = "There can be a delay between when CustomResourceDefinitions are created"


@dataclass(frozen=True, slots=True, kw_only=True)
class Identities:
    """Directories and files as the pods of operator, gateway and API see them mounted.

    Nothing is carried from one namespace to another here: a pod mounts what is in its own.
    """

    agent_port: Path
    control_port: Path
    operator: Path
    operator_certificate: Path
    """At the gateway: the operator's certificate without its key."""

    agent_ca: Path
    """At the gateway: of the ConfigMap that the operator writes."""

    server_ca: Path
    """At the operator, and at who calls the API: the Secret's certificate without its key."""

    api: Path

    def follow(
        self,
        secrets: Mapping[Named, Mapping[str, bytes]],
        config_maps: Mapping[Named, Mapping[str, bytes]],
    ) -> bool:
        """Bring the mounts up to date, as a kubelet does; return whether all are there."""
        mounts = (
            (self.agent_port, secrets.get(AGENT_PORT_SECRET), None),
            (self.control_port, secrets.get(CONTROL_PORT_SECRET), None),
            (self.operator, secrets.get(OPERATOR_SECRET), None),
            (self.api, secrets.get(API_SECRET), None),
            (self.operator_certificate.parent, secrets.get(OPERATOR_SECRET), "tls.crt"),
            (self.server_ca.parent, secrets.get(SERVER_CA_SECRET), "ca.crt"),
            (self.agent_ca.parent, config_maps.get((NAMESPACE, AGENT_CA)), "ca.crt"),
        )
        for directory, data, item in mounts:
            if data and data.get(item or "tls.crt"):
                write_mount(directory, {item: data[item]} if item else data)
        return all((directory / "..data").exists() for directory, _, _ in mounts)


def chart_manifests(template: str, trust_domain: str = "derops.test") -> list[dict[str, Any]]:
    """Return what one template of the chart renders."""
    values = {
        "trustDomain": trust_domain,
        "database": {"secretName": "not-in-the-stack"},
        "api": {
            "database": {"secretName": "not-in-the-stack-either"},
            "tls": {"dnsNames": ["localhost"]},
        },
    }
    return chart.documents(values, template)


def install_issuers(control_plane: ControlPlane) -> None:
    """Create the three CAs with their issuers, wait until all can sign, and shut strangers out."""
    control_plane.apply(*chart_manifests("pki-issuers.yaml"))
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
    control_plane.apply(*chart_manifests("admission-policies.yaml"))
    _wait_until_refused(control_plane, _forbidden())
    install_creator_policies(control_plane)


def install_creator_policies(control_plane: ControlPlane) -> None:
    """Apply the policies of who ordered a Dispatch and wait until both are enforced."""
    control_plane.apply(*chart_manifests("creator-policies.yaml"))
    _wait_until_refused(control_plane, [_unsaid_dispatch()])
    _wait_until_stamped(control_plane, stamped=True)


def _wait_until_refused(control_plane: ControlPlane, waiting: list[dict[str, Any]]) -> None:
    deadline = time.monotonic() + _ENFORCED_SECONDS
    while waiting:
        try:
            _dry_run(control_plane, waiting[-1], _identity_for(waiting[-1]))
        except StackError as refusal:
            if "ValidatingAdmissionPolicy" not in str(refusal):
                raise
            waiting.pop()
        if waiting and time.monotonic() > deadline:
            raise StackError(f"the admission policies do not refuse a {waiting[-1]['kind']}")


def _dry_run(
    control_plane: ControlPlane, manifest: dict[str, Any], identity: tuple[str, ...] = ()
) -> dict[str, Any]:
    """Create an object, and keep nothing of it; return it as it would be.

    The API server says that a kind is established before all of it serves the kind.
    """
    deadline = time.monotonic() + _ENFORCED_SECONDS
    arguments = ("create", "--dry-run=server", "-f", "-", "-o", "json", *identity)
    while True:
        try:
            answer = control_plane.kubectl(*arguments, stdin=json.dumps(manifest))
        except StackError as refusal:
            if _UNSERVED not in str(refusal) or time.monotonic() > deadline:
                raise
            continue
        created: dict[str, Any] = json.loads(answer)
        return created


def _identity_for(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Return as whom an object is forbidden: the API must say for whom it makes a Dispatch."""
    of_api = (f"--as={API_USER}", "--as-group=system:masters")
    return of_api if manifest["kind"] == "Dispatch" else ()


def wait_until_unstamped(control_plane: ControlPlane) -> None:
    """Wait until the mutating policy, whose binding was deleted, is in force no more."""
    _wait_until_stamped(control_plane, stamped=False)


def _wait_until_stamped(control_plane: ControlPlane, *, stamped: bool) -> None:
    deadline = time.monotonic() + _ENFORCED_SECONDS
    while ("annotations" in _dry_run(control_plane, _unsaid_dispatch())["metadata"]) != stamped:
        if time.monotonic() > deadline:
            raise StackError(f"new Dispatches are {'not ' * stamped}stamped")


def _unsaid_dispatch() -> dict[str, Any]:
    return {
        "apiVersion": "derops.io/v1alpha1",
        "kind": "Dispatch",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {
            "assetRef": {"name": "probe"},
            "setpoint": {"mode": "CeaseToEnergize"},
            "durationSeconds": 1,
        },
    }


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
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": SERVER_CA, "namespace": "default"},
            "data": {"ca.crt": "probe"},
        },
    ]


def issue(control_plane: ControlPlane, trust_domain: str, directory: Path) -> Identities:
    """Let cert-manager issue the identities and mount them below ``directory``.

    The agent CA is not among them: the operator writes it, once it runs.
    """
    install_issuers(control_plane)
    control_plane.apply(*chart_manifests("pki-certificates.yaml", trust_domain))
    control_plane.kubectl(
        "wait", "--for=condition=Ready", "certificate", "--all", "-n", NAMESPACE, "--timeout=60s"
    )

    issued = Identities(
        agent_port=directory / "derops-gateway-tls",
        control_port=directory / "derops-gateway-control-tls",
        operator=directory / "derops-operator-tls",
        operator_certificate=directory / "operator-certificate" / "tls.crt",
        agent_ca=directory / "agent-ca" / "ca.crt",
        server_ca=directory / "server-ca" / "ca.crt",
        api=directory / "derops-api-tls",
    )
    names = (AGENT_PORT_SECRET, CONTROL_PORT_SECRET, OPERATOR_SECRET, API_SECRET, SERVER_CA_SECRET)
    issued.follow({name: secret_data(control_plane, *name) for name in names}, {})
    return issued


def mount_agent_ca(control_plane: ControlPlane, issued: Identities) -> bool:
    """Mount the agent CA for the gateway, if the operator has written it; tell whether."""
    try:
        text = control_plane.kubectl("get", "configmap", AGENT_CA, "-n", NAMESPACE, "-o", "json")
    except StackError:
        return False
    data = {key: value.encode() for key, value in json.loads(text)["data"].items()}
    return issued.follow({}, {(NAMESPACE, AGENT_CA): data})


def program_kubeconfig(control_plane: ControlPlane, program: str) -> str:
    """Return a kubeconfig of a program's ServiceAccount, with the chart's rules and no more.

    Args:
        control_plane: Where.
        program: ``operator`` or ``api``, as its template is named.
    """
    rights = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
    manifests = chart_manifests(f"{program}.yaml")
    control_plane.apply(*(each for each in manifests if each["kind"] in rights))
    return control_plane.service_account_kubeconfig(NAMESPACE, f"derops-{program}")


def secret_data(control_plane: ControlPlane, namespace: str, name: str) -> dict[str, bytes]:
    """Return what a Secret holds."""
    secret = json.loads(control_plane.kubectl("get", "secret", name, "-n", namespace, "-o", "json"))
    return {key: base64.b64decode(value) for key, value in secret["data"].items()}
