"""A cluster with our files applied, and those who would like to be somebody else in it."""

import base64
import itertools
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests import pki
from tests.stack import identities, kubeconfig
from tests.stack.controlplane import ControlPlane
from tests.stack.processes import StackError

TENANT = "tenant-a"
GITOPS = "gitops"
OPERATOR_URI = "spiffe://derops.test/operator"
FOREIGN_URI = "spiffe://derops.test/ns/tenant-b/derasset/battery"
OWN_URI = f"spiffe://derops.test/ns/{TENANT}/derasset/battery"

numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a kubeconfig."""

    program: str
    config: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return kubeconfig.kubectl(self.program, self.config, *arguments, stdin=stdin)

    def create(self, *manifests: dict[str, Any]) -> None:
        body = {"apiVersion": "v1", "kind": "List", "items": manifests}
        self.kubectl("create", "-f", "-", stdin=json.dumps(body))

    def patch_status(
        self, kind: str, name: str, status: dict[str, Any], namespace: str = TENANT
    ) -> None:
        """Patch a status and nothing else: kubectl would read it first, which needs a right."""
        config = json.loads(Path(self.config).read_text())
        cluster = config["clusters"][0]["cluster"]
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        path = f"/apis/cert-manager.io/v1/namespaces/{namespace}/{kind}s/{name}/status"
        call = urllib.request.Request(
            cluster["server"] + path,
            json.dumps({"status": status}).encode(),
            {
                "Authorization": f"Bearer {config['users'][0]['user']['token']}",
                "Content-Type": "application/merge-patch+json",
            },
            method="PATCH",
        )
        try:
            trust = ssl.create_default_context(cadata=authority)
            with urllib.request.urlopen(call, context=trust):
                pass
        except urllib.error.HTTPError as error:
            with error:
                raise StackError(json.load(error)["message"]) from None

    def refused(self, *manifests: dict[str, Any]) -> None:
        """Try to create each manifest; each is refused by our policies and told what to do."""
        with pytest.raises(StackError) as refusal:
            self.create(*manifests)
        told = str(refusal.value)
        assert told.count("ValidatingAdmissionPolicy 'derops-") == len(manifests)
        assert told.count("Create a DERAsset") == len(manifests)


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster with our files applied, the operator's account, and an attacker's two accounts."""

    control_plane: ControlPlane
    operator: Caller
    callers: dict[str, Caller]

    def approve(self, request: str, namespace: str = TENANT) -> None:
        """Approve as the operator does."""
        self.operator.patch_status(
            "certificaterequest", request, {"conditions": [approval()]}, namespace
        )

    def wait(self, kind: str, name: str, condition: str, namespace: str = TENANT) -> None:
        self.control_plane.kubectl(
            "wait", f"--for={condition}", f"{kind}/{name}", "-n", namespace, "--timeout=90s"
        )


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with ControlPlane() as control_plane:
        identities.install_issuers(control_plane)
        program = control_plane.binaries.kubectl
        operator = Caller(program, identities.program_kubeconfig(control_plane, "operator"))
        accounts = {"tenant": (TENANT, "builder"), "gitops": (GITOPS, "controller")}
        for namespace in (TENANT, "tenant-b", GITOPS):
            control_plane.kubectl("create", "namespace", namespace)
        for namespace, name in accounts.values():
            control_plane.kubectl("create", "serviceaccount", name, "-n", namespace)
        control_plane.kubectl(
            "create", "clusterrolebinding", "gitops", "--clusterrole=cluster-admin",
            f"--serviceaccount={GITOPS}:controller",
        )  # fmt: skip
        control_plane.kubectl(
            "create", "role", "builder", "-n", TENANT, "--verb=*",
            "--resource=certificates.cert-manager.io,certificaterequests.cert-manager.io",
            "--resource=certificates.cert-manager.io/status",
            "--resource=certificaterequests.cert-manager.io/status,ingresses.networking.k8s.io",
            "--resource=configmaps",
        )  # fmt: skip
        control_plane.kubectl(
            "create", "rolebinding", "builder", "-n", TENANT, "--role=builder",
            f"--serviceaccount={TENANT}:builder",
        )  # fmt: skip
        control_plane.kubectl(
            "create", "clusterrole", "requester", "--verb=create",
            "--resource=certificatesigningrequests.certificates.k8s.io",
        )  # fmt: skip
        control_plane.kubectl(
            "create", "clusterrolebinding", "requester", "--clusterrole=requester",
            f"--serviceaccount={TENANT}:builder",
        )  # fmt: skip
        callers = {
            who: Caller(program, control_plane.service_account_kubeconfig(*account))
            for who, account in accounts.items()
        }
        yield Cluster(control_plane, operator, callers)


def approval(kind: str = "Approved") -> dict[str, str]:
    return {"type": kind, "status": "True", "reason": "derops.io", "message": "says the test"}


def issuer_ref(name: str, kind: str = "ClusterIssuer", **group: str) -> dict[str, str]:
    return {"name": name, "kind": kind, **group}


def certificate(
    name: str, uri: str, issuer: dict[str, str], namespace: str = TENANT
) -> dict[str, Any]:
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "Certificate",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "secretName": name,
            "duration": "24h",
            "uris": [uri],
            "usages": ["digital signature", "client auth"],
            "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
            "issuerRef": issuer,
        },
    }


def certificate_request(
    name: str, uri: str, issuer: dict[str, str], namespace: str = TENANT
) -> dict[str, Any]:
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "CertificateRequest",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "request": pki.signing_request(uri),
            "usages": ["digital signature", "client auth"],
            "issuerRef": issuer,
        },
    }


def kubernetes_request(name: str, signer: str) -> dict[str, Any]:
    return {
        "apiVersion": "certificates.k8s.io/v1",
        "kind": "CertificateSigningRequest",
        "metadata": {"name": name},
        "spec": {
            "request": pki.signing_request(OPERATOR_URI),
            "signerName": signer,
            "usages": ["digital signature", "client auth"],
        },
    }


def agent_certificate(cluster: Cluster, **metadata: Any) -> str:
    """Create a Certificate as the operator does, wait for its request, and return its name.

    The request has the same name with -1 behind it.
    """
    name = f"battery-{next(numbers)}"
    manifest = certificate(name, OWN_URI, issuer_ref("derops-agent", group="cert-manager.io"))
    manifest["metadata"] |= metadata
    cluster.operator.create(manifest)
    cluster.wait("certificaterequest", f"{name}-1", "create")
    return name
