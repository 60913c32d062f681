"""What each of the chart's roles opens, as the API server answers when the API asks it."""

import json
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import yaml
from tests.crds.manifests import PLURALS
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import CHART_FILES, chart_manifests
from tests.waiting import until

from derops.installation import CONFIG_MAP
from derops_cli.api import AUTHORITY, CLIENT
from derops_headend.api.routes.me import ASKED

TENANT, OTHER = "roles-a", "roles-b"
READS, WRITES = ("get", "list", "watch"), ("create", "update", "patch", "delete")
VERBS = (*READS, *WRITES, "deletecollection", "*")
KINDS = tuple(PLURALS.values())
RESOURCES = (
    *KINDS, "derassets/telemetry", "audits", "derassets/status", "dispatches/status", "*",
)  # fmt: skip
LOOKS = {(verb, kind) for verb in READS for kind in KINDS} | {("get", "derassets/telemetry")}
OPENS: dict[str, set[tuple[str, str]]] = {
    "derops-viewer": LOOKS,
    "derops-dispatcher": LOOKS | {(verb, "dispatches") for verb in WRITES},
    "derops-asset-admin": LOOKS | {(verb, "derassets") for verb in WRITES},
    "derops-auditor": {("list", "audits")},
}
"""Verb and resource of each role; all else stays shut."""

STOCK = {"view": LOOKS, "edit": LOOKS, "admin": LOOKS}
"""The roles of Kubernetes, which the viewer's is aggregated to."""


def roles_of(kind: str) -> list[dict[str, Any]]:
    return [each for each in chart_manifests("roles.yaml") if each["kind"] == kind]


def rules_of(name: str) -> list[dict[str, Any]]:
    found = {each["metadata"]["name"]: each["rules"] for each in roles_of("ClusterRole")}
    rules: list[dict[str, Any]] = found[name]
    return rules


@pytest.fixture(scope="module")
def roles(kube: ControlPlane) -> Iterator[ControlPlane]:
    """Return a control plane where a user of each role's name has that role in one namespace."""
    manifests = roles_of("ClusterRole")
    kube.apply(*manifests)
    for namespace in (TENANT, OTHER):
        kube.kubectl("create", "namespace", namespace)
    for role in (*OPENS, *STOCK):
        kube.kubectl(
            "create", "rolebinding", role, "-n", TENANT, f"--clusterrole={role}", f"--user={role}"
        )
    yield kube
    kube.kubectl("delete", "namespace", TENANT, OTHER, "--wait=false")
    kube.kubectl("delete", "clusterrole", *(each["metadata"]["name"] for each in manifests))


def answers(
    kube: ControlPlane, user: str, namespace: str, asked: list[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Return which of some verbs and resources are allowed, by SubjectAccessReviews."""
    reviews = []
    for verb, what in asked:
        resource, _, subresource = what.partition("/")
        attributes = {
            "group": "derops.io", "verb": verb, "namespace": namespace,
            "resource": resource, "subresource": subresource,
        }  # fmt: skip
        reviews.append(
            {
                "apiVersion": "authorization.k8s.io/v1",
                "kind": "SubjectAccessReview",
                "spec": {"user": user, "resourceAttributes": attributes},
            }
        )
    body = {"apiVersion": "v1", "kind": "List", "items": reviews}
    path = "jsonpath={.status.allowed}{'\\n'}"
    told = kube.kubectl("create", "-f", "-", "-o", path, stdin=json.dumps(body)).split()
    assert len(told) == len(asked)
    return {each for each, allowed in zip(asked, told, strict=True) if allowed == "true"}


@pytest.mark.parametrize("role", [*OPENS, *STOCK])
async def test_a_role_opens_what_the_table_says_and_nothing_else(
    roles: ControlPlane, role: str
) -> None:
    everything = list(product(VERBS, RESOURCES))
    wanted = (OPENS | STOCK)[role]
    if role in STOCK:  # put together by a controller
        await until(lambda: answers(roles, role, TENANT, [("get", "dispatches")]))

    assert answers(roles, role, TENANT, everything) == wanted
    assert answers(roles, role, OTHER, everything) == set()
    assert answers(roles, role, "", everything) == set()


@pytest.mark.parametrize("role", OPENS)
def test_no_role_reaches_beyond_our_group(role: str) -> None:
    assert {group for rule in rules_of(role) for group in rule["apiGroups"]} == {"derops.io"}


def test_each_resource_of_a_role_is_a_kind_or_one_that_the_api_asks_for() -> None:
    """RBAC takes a name that nothing has, and it opens nothing."""
    known = {*KINDS, *(what for _, what in ASKED)}
    named = {what for role in OPENS for rule in rules_of(role) for what in rule["resources"]}
    rules = yaml.safe_load((CHART_FILES / "api-rules.yaml").read_text(encoding="utf-8"))
    own = {what for rule in rules if "derops.io" in rule["apiGroups"] for what in rule["resources"]}

    assert named <= known
    assert own <= set(KINDS)


def test_some_role_opens_each_right_that_the_api_asks_for() -> None:
    assert set(ASKED) <= set().union(*OPENS.values())


def test_the_chart_has_these_roles_and_no_others() -> None:
    assert {each["metadata"]["name"] for each in roles_of("ClusterRole")} == set(OPENS)


def test_the_role_for_the_state_of_the_installation_opens_that_alone() -> None:
    (role,) = roles_of("Role")

    assert role["metadata"]["name"] == "derops-installation-viewer"
    (rule,) = role["rules"]
    assert rule["resourceNames"] == [CONFIG_MAP, CLIENT, AUTHORITY]
    assert (rule["resources"], rule["verbs"]) == (["configmaps"], ["get", "list", "watch"])
