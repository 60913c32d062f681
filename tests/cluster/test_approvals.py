"""Who approves requests for the identity of an agent: the operator, by two locks.

The admission policies are one and have tests on a control plane. The other is cert-manager's own
webhook, which only a cluster has: it is asked here with the policies taken away.
"""

import json
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from tests import pki
from tests.cluster import installing
from tests.cluster.cluster import Cluster
from tests.stack.processes import StackError
from tests.waiting import eventually

OPERATOR = f"system:serviceaccount:{installing.NAMESPACE}:derops-operator"
CERT_MANAGER = "system:serviceaccount:cert-manager:cert-manager"
MALLORY = "mallory"
BINDING = "validatingadmissionpolicybinding/derops-certificaterequests"
_WEBHOOK = "does not have permissions to set approved/denied conditions"


@pytest.fixture
def mallory(cluster: Cluster) -> Iterator[Cluster]:
    """Return the cluster in the eyes of a user who may write the status of any request."""
    rbac = "rbac.authorization.k8s.io"
    metadata = {"name": "test-mallory"}
    rule = {
        "apiGroups": ["cert-manager.io"],
        "resources": ["certificaterequests", "certificaterequests/status"],
        "verbs": ["get", "list", "create", "update", "patch"],
    }
    cluster.apply(
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRole",
            "metadata": dict(metadata),
            "rules": [rule],
        },
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "ClusterRoleBinding",
            "metadata": dict(metadata),
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "test-mallory"},
            "subjects": [{"kind": "User", "name": MALLORY, "apiGroup": rbac}],
        },
    )
    yield cluster.acting_as(MALLORY)
    cluster.kubectl("delete", "clusterrole,clusterrolebinding", "test-mallory")


@pytest.fixture
def without_policy(cluster: Cluster) -> Iterator[None]:
    """Take the admission policy for requests away, and put it back afterwards."""
    binding = cluster.get(BINDING)
    cluster.kubectl("delete", BINDING)
    yield
    kept = {key: binding["metadata"].get(key, {}) for key in ("name", "labels", "annotations")}
    cluster.apply({**binding, "metadata": kept})


def request(cluster: Cluster) -> str:
    """Create a request to the issuer of agents in derops' own namespace and return its name."""
    name = f"test-foreign-{secrets.token_hex(3)}"
    cluster.apply(_request(name, {"name": "derops-agent", "kind": "ClusterIssuer"}))
    return name


@pytest.mark.parametrize("who", [MALLORY, CERT_MANAGER])
def test_the_webhook_refuses_foreign_approvals(
    cluster: Cluster, mallory: Cluster, without_policy: None, who: str
) -> None:
    del mallory, without_policy  # they are there
    name = request(cluster)

    refused = eventually(lambda: _refusal_by_webhook(cluster.acting_as(who), name), "the webhook")

    assert _WEBHOOK in refused
    assert _approval(cluster, name) is None


def test_the_webhook_takes_the_operators_approval(cluster: Cluster, without_policy: None) -> None:
    del without_policy
    name = request(cluster)

    _approve(cluster.acting_as(OPERATOR), name)

    assert _approval(cluster, name) == "True"


def test_the_policy_refuses_before(cluster: Cluster, mallory: Cluster) -> None:
    name = request(cluster)

    def refused_by_policy() -> bool:
        return "ValidatingAdmissionPolicy" in _refused(mallory, name)

    eventually(refused_by_policy, "the policy to refuse")
    assert _approval(cluster, name) is None


def test_cert_manager_does_not_approve_for_agents_by_itself(cluster: Cluster) -> None:
    """It approves whatever anybody asks, and does so for the issuers of operator and gateway."""
    name = request(cluster)
    control = f"test-control-{secrets.token_hex(3)}"
    cluster.apply(_request(control, {"name": "derops-server", "kind": "Issuer"}))

    eventually(lambda: _approval(cluster, control) == "True", "the approval of the control")

    assert _approval(cluster, name) is None


def _request(name: str, issuer: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "cert-manager.io/v1",
        "kind": "CertificateRequest",
        "metadata": {"name": name, "namespace": installing.NAMESPACE},
        "spec": {
            "request": pki.signing_request(),
            "usages": ["client auth", "digital signature"],
            "issuerRef": {"group": "cert-manager.io", **issuer},
        },
    }


def _approve(somebody: Cluster, name: str) -> None:
    condition = {
        "type": "Approved",
        "status": "True",
        "reason": "cert-manager.io",
        "message": "by a test",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    found = Cluster.find().get("certificaterequest", name, "-n", installing.NAMESPACE)
    found.setdefault("status", {})["conditions"] = [condition]
    # Not "kubectl patch": it reads the status first, for which controllers have no right.
    path = f"/apis/cert-manager.io/v1/namespaces/{installing.NAMESPACE}/certificaterequests/{name}"
    somebody.kubectl("replace", "--raw", f"{path}/status", "-f", "-", stdin=json.dumps(found))


def _refused(somebody: Cluster, name: str) -> str:
    try:
        _approve(somebody, name)
    except StackError as refusal:
        return str(refusal)
    raise AssertionError(f"{somebody.user} approved {name}")


def _refusal_by_webhook(somebody: Cluster, name: str) -> str | None:
    """Return the refusal; None while the policy, which is being taken away, is what refuses."""
    refused = _refused(somebody, name)
    return None if "ValidatingAdmissionPolicy" in refused else refused


def _approval(cluster: Cluster, name: str) -> str | None:
    """Return what a request says of its approval."""
    found = cluster.get("certificaterequest", name, "-n", installing.NAMESPACE)
    for each in found.get("status", {}).get("conditions", []):
        if each["type"] in ("Approved", "Denied"):
            return "True" if each["type"] == "Approved" else "Denied"
    return None
