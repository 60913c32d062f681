"""The accounts of examples/rest may what they are for, and who edits the tenant is none of them."""

import json
from collections.abc import Iterator

import pytest
from tests.stack import chart, places
from tests.stack.controlplane import ControlPlane
from tests.stack.processes import StackError

FILE = str(places.REPOSITORY / "examples" / "rest" / "callers.yaml")
CALLERS, TENANT, OTHER = "derops-callers", "pilot-north", "pilot-south"
TRADING, AUDITOR = (f"system:serviceaccount:{CALLERS}:{name}" for name in ("trading", "auditor"))
EDITOR = "editor@pilot-north"


@pytest.fixture(scope="module")
def tenants(kube: ControlPlane) -> Iterator[ControlPlane]:
    """Return a control plane with two tenants, the chart's roles, and an editor of the first."""
    roles = [
        each
        for each in chart.documents({"postgresql": {"enabled": True}}, "roles.yaml")
        if each["kind"] == "ClusterRole"
    ]
    kube.apply(*roles)
    for name in (TENANT, OTHER):
        kube.kubectl("create", "namespace", name)
    kube.kubectl("apply", "-f", FILE)
    kube.kubectl(
        "create", "rolebinding", "edit", "--clusterrole=edit", f"--user={EDITOR}", "-n", TENANT
    )
    yield kube
    kube.kubectl("delete", "namespace", TENANT, OTHER, CALLERS)
    kube.kubectl("delete", "clusterrole", *(each["metadata"]["name"] for each in roles))


def may(kube: ControlPlane, user: str, verb: str, resource: str, namespace: str) -> bool:
    attributes = {"namespace": namespace, "verb": verb, "group": "derops.io", "resource": resource}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": user, "resourceAttributes": attributes},
    }
    said = kube.kubectl("create", "-f", "-", "-o", "json", stdin=json.dumps(review))
    return bool(json.loads(said)["status"]["allowed"])


@pytest.mark.parametrize(
    ("user", "verb", "resource", "here"),
    [
        pytest.param(TRADING, "create", "dispatches", True, id="trading orders"),
        pytest.param(TRADING, "patch", "dispatches", True, id="trading cancels"),
        pytest.param(TRADING, "patch", "derassets", False, id="trading lifts no limit"),
        pytest.param(TRADING, "list", "audits", False, id="trading reads no audit"),
        pytest.param(AUDITOR, "list", "audits", True, id="auditor reads the audit"),
        pytest.param(AUDITOR, "create", "dispatches", False, id="auditor orders nothing"),
        pytest.param(EDITOR, "create", "dispatches", False, id="who edits orders nothing"),
    ],
)
def test_a_caller_may_what_it_is_for_and_only_in_its_tenant(
    tenants: ControlPlane, user: str, verb: str, resource: str, here: bool
) -> None:
    assert may(tenants, user, verb, resource, TENANT) is here
    assert not may(tenants, user, verb, resource, OTHER)


def test_who_edits_the_tenant_makes_no_token_of_a_caller(tenants: ControlPlane) -> None:
    editor = [f"--as={EDITOR}", "--audience=derops-api"]
    with pytest.raises(StackError, match="forbidden"):
        tenants.kubectl("create", "token", "trading", "-n", CALLERS, *editor)

    # Of an account in the tenant's own namespace it is not refused: that is why they are elsewhere.
    tenants.kubectl("wait", "--for=create", "serviceaccount/default", "-n", TENANT, "--timeout=60s")
    assert tenants.kubectl("create", "token", "default", "-n", TENANT, *editor)
