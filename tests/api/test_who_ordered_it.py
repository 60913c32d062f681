"""Who ordered a dispatch by REST, by kubectl and from Git, with both policies in force."""

import json
from collections.abc import Iterator

import httpx
import pytest
from tests.api.rig import ApiProcess, Tenant, make_tenant
from tests.api.test_dispatches import ORDER, new_key
from tests.crds.manifests import BATTERY, DISPATCH, merged
from tests.stack import identities
from tests.stack.controlplane import ControlPlane

NAMESPACE = "ordered"
PATH = f"/v1/namespaces/{NAMESPACE}/dispatches"
DISPATCHER = f"system:serviceaccount:{NAMESPACE}:dispatcher"
TOOL = ["--as=system:serviceaccount:gitops:controller", "--as-group=system:masters"]


@pytest.fixture(scope="module")
def tenant(kube: ControlPlane) -> Iterator[Tenant]:
    """Return a tenant in a cluster with both policies; they are taken away afterwards."""
    identities.install_creator_policies(kube)
    tenant = make_tenant(kube, NAMESPACE)
    kube.apply(merged(BATTERY, {"metadata": {"namespace": NAMESPACE}}))
    yield tenant
    kube.kubectl("delete", "mutatingadmissionpolicybinding", "derops-creator")
    kube.kubectl("delete", "validatingadmissionpolicybinding", "derops-creator")
    identities.wait_until_unstamped(kube)


@pytest.fixture(scope="module")
def client(api: ApiProcess, tenant: Tenant) -> Iterator[httpx.Client]:
    with api.client(tenant.token("dispatcher")) as opened:
        yield opened


def annotation(kube: ControlPlane, name: str) -> str:
    path = r"jsonpath={.metadata.annotations.derops\.io/created-by}"
    return kube.kubectl("get", "dispatch", name, "-n", NAMESPACE, "-o", path)


def test_an_order_by_rest_is_the_callers(kube: ControlPlane, client: httpx.Client) -> None:
    made = client.post(PATH, json=ORDER, headers=new_key())

    assert made.status_code == 201, made.text
    name = made.json()["name"]
    assert made.json()["createdBy"] == annotation(kube, name) == DISPATCHER
    assert client.get(f"{PATH}/{name}").json()["createdBy"] == DISPATCHER


def test_an_order_by_rest_is_cancelled_and_stays_the_callers(
    kube: ControlPlane, client: httpx.Client
) -> None:
    name = client.post(PATH, json=ORDER, headers=new_key()).json()["name"]

    cancelled = client.post(f"{PATH}/{name}/cancel")

    assert cancelled.status_code == 200, cancelled.text
    assert annotation(kube, name) == DISPATCHER


def test_a_dry_run_passes_the_policies(client: httpx.Client) -> None:
    answer = client.post(PATH, json=ORDER, params={"dryRun": "true"})

    assert answer.status_code == 200, answer.text


def test_an_order_of_kubectl_and_one_from_git_are_told_by_rest(
    kube: ControlPlane, client: httpx.Client
) -> None:
    forged = {"namespace": NAMESPACE, "annotations": {"derops.io/created-by": DISPATCHER}}
    by_person = json.dumps(merged(DISPATCH, {"metadata": {**forged, "name": "by-person"}}))
    by_tool = json.dumps(merged(DISPATCH, {"metadata": {"namespace": NAMESPACE, "name": "tool"}}))

    kube.kubectl("create", "-f", "-", stdin=by_person)
    for _ in range(2):
        kube.kubectl("apply", "--server-side", "--force-conflicts", *TOOL, "-f", "-", stdin=by_tool)

    told = {
        name: client.get(f"{PATH}/{name}").json()["createdBy"] for name in ("by-person", "tool")
    }
    assert told == {"by-person": "derops-admin", "tool": "system:serviceaccount:gitops:controller"}


def test_a_sync_from_git_leaves_an_order_by_rest_the_callers(
    kube: ControlPlane, client: httpx.Client
) -> None:
    name = client.post(PATH, json=ORDER, headers=new_key()).json()["name"]
    found = kube.kubectl("get", "dispatch", name, "-n", NAMESPACE, "-o", "json")
    manifest = json.loads(found)
    del manifest["metadata"]["annotations"]

    kube.kubectl("replace", *TOOL, "-f", "-", stdin=json.dumps(manifest))

    assert annotation(kube, name) == DISPATCHER
