"""The manifests for Argo CD and Flux: an API server with the definitions of both takes them."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.operator.test_kstatus import computed
from tests.stack import chart, gitops
from tests.stack.controlplane import ControlPlane
from tests.stack.processes import StackError
from tests.waiting import until

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
ARGOCD = ["argocd/derops.yaml", "argocd/pilot-north.yaml"]
FLUX = ["flux/derops.yaml", "flux/pilot-north.yaml"]
PLATFORM = ["gitops/access/access.yaml", "gitops/tenants/pilot-north.yaml"]
FLEET = [
    str(file.relative_to(EXAMPLES)) for file in sorted(EXAMPLES.glob("gitops/fleet/**/*.yaml"))
]
DISPATCHES = "system:serviceaccount:derops-access:pilot-north-dispatches"
ASSETS = "system:serviceaccount:derops-access:pilot-north-assets"
TENANT, ORDERS, LIMITS = "pilot-north", "dispatches.derops.io", "derassets.derops.io"
ROLES = ["derops-viewer", "derops-dispatcher", "derops-asset-admin"]
NAMESPACES = ["argocd", "flux-system", "another-tenant"]


def documents(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((EXAMPLES / file).read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def platform(kube: ControlPlane) -> Iterator[ControlPlane]:
    """Return a control plane with the definitions of both tools and what the platform writes."""
    definitions = ["--server-side", "-f", str(gitops.definitions())]
    kube.kubectl("apply", *definitions)
    for name in NAMESPACES:
        kube.kubectl("create", "namespace", name)
    roles = [
        each
        for each in chart.documents({"postgresql": {"enabled": True}})
        if each["kind"] == "ClusterRole" and each["metadata"]["name"] in ROLES
    ]
    assert len(roles) == len(ROLES)
    kube.apply(*roles)
    for file in PLATFORM:
        kube.kubectl("apply", "-f", str(EXAMPLES / file))
    yield kube
    kube.kubectl("delete", "clusterrole", *ROLES)
    for file in reversed(PLATFORM):
        kube.kubectl("delete", "-f", str(EXAMPLES / file), "--wait=false")
    kube.kubectl("delete", "namespace", *NAMESPACES)
    kube.kubectl("delete", "-f", str(gitops.definitions()), "--wait=false")


def dry_run(kube: ControlPlane, *documents: dict[str, Any]) -> str:
    text = yaml.safe_dump_all(documents)
    strict = ["--server-side", "--dry-run=server", "--validate=strict", "-f", "-"]
    return kube.kubectl("apply", *strict, stdin=text)


@pytest.mark.parametrize("file", [*ARGOCD, *FLUX, *FLEET])
def test_an_example_is_taken_by_a_server_that_knows_both_tools(
    platform: ControlPlane, file: str
) -> None:
    taken = dry_run(platform, *documents(file))

    assert taken.count("serverside-applied (server dry run)") == len(documents(file))


@pytest.mark.parametrize("file", [*ARGOCD, *FLUX])
def test_a_field_that_no_definition_has_would_be_refused(platform: ControlPlane, file: str) -> None:
    for document in documents(file):
        document["spec"]["serviceAcountName"] = "typo"
        with pytest.raises(StackError, match="serviceAcountName"):
            dry_run(platform, document)


def test_the_examples_name_files_that_there_are() -> None:
    sources = [
        document["spec"]
        for file in [*ARGOCD, *FLUX]
        for document in documents(file)
        if document["kind"] in ("Application", "Kustomization")
    ]
    paths = [each.get("path") or each["source"]["path"] for each in sources]
    tenant = {"assets", "dispatches"}

    for path in (each.removeprefix("./") for each in paths):
        root = EXAMPLES / "gitops/fleet/pilot-north" if path in tenant else EXAMPLES.parent
        assert (root / path).is_dir(), f"{path} does not exist"
    assert len(paths) == 8


@pytest.mark.parametrize(
    ("who", "verb", "what", "namespace", "answer"),
    [
        pytest.param(DISPATCHES, "create", ORDERS, TENANT, True, id="orders"),
        pytest.param(DISPATCHES, "patch", LIMITS, TENANT, False, id="limits"),
        pytest.param(DISPATCHES, "create", ORDERS, "another-tenant", False, id="others"),
        pytest.param(DISPATCHES, "get", "secrets", TENANT, False, id="keys"),
        pytest.param(DISPATCHES, "create", "pods", TENANT, False, id="pods"),
        pytest.param(ASSETS, "patch", LIMITS, TENANT, True, id="assets"),
        pytest.param(ASSETS, "create", ORDERS, TENANT, False, id="no orders"),
        pytest.param(ASSETS, "get", "secrets", TENANT, False, id="no keys"),
    ],
)  # fmt: skip
def test_an_account_may_do_what_its_role_says_and_no_more(
    platform: ControlPlane, who: str, verb: str, what: str, namespace: str, answer: bool
) -> None:
    assert may(platform, who, verb, what, namespace) is answer


@pytest.mark.parametrize("group", ["pilot-north-viewers", "pilot-north-dispatchers"])
def test_no_tenant_can_act_as_an_account_with_power(platform: ControlPlane, group: str) -> None:
    tenant = ["--as=somebody", f"--as-group={group}"]
    asked = [
        ("create", "pods", "derops-access"),
        ("create", "serviceaccounts/token", "derops-access"),
        ("get", "secrets", "derops-access"),
        ("create", "rolebindings.rbac.authorization.k8s.io", "pilot-north"),
        ("patch", "resourcequotas", "pilot-north"),
    ]

    assert may(platform, "somebody", "list", "dispatches.derops.io", "pilot-north", *tenant)
    assert [each for each in asked if may(platform, "somebody", *each, *tenant)] == []


def may(kube: ControlPlane, who: str, verb: str, what: str, namespace: str, *more: str) -> bool:
    resource, _, subresource = what.partition("/")
    arguments = [verb, resource, f"--as={who}", "-n", namespace, *more]
    if subresource:
        arguments.append(f"--subresource={subresource}")
    try:
        return kube.kubectl("auth", "can-i", *arguments).strip() == "yes"
    except StackError:  # kubectl ends with 1 where the answer is no
        return False


def test_the_project_of_argo_cd_lets_in_what_the_chart_has_of_the_whole_cluster() -> None:
    (project,) = [each for each in documents(ARGOCD[0]) if each["kind"] == "AppProject"]
    let_in = {(each["group"], each["kind"]) for each in project["spec"]["clusterResourceWhitelist"]}
    rendered = chart.documents({"postgresql": {"enabled": True}})
    needed = {
        (each["apiVersion"].rpartition("/")[0], each["kind"])
        for each in rendered
        if "namespace" not in each["metadata"] and "helm.sh/hook" not in str(each["metadata"])
    }

    assert needed <= let_in


async def test_the_quota_counts_dispatches(platform: ControlPlane) -> None:
    def used() -> str:
        path = r"jsonpath={.status.used.count/dispatches\.derops\.io}"
        return platform.kubectl("get", "resourcequota", "tenant", "-n", "pilot-north", "-o", path)

    await until(lambda: used() == "0")


def test_what_a_tenant_applies_is_waited_for_by_both_tools(platform: ControlPlane) -> None:
    for file in FLEET:
        shown = platform.kubectl(
            "apply", "--dry-run=server", "-o", "yaml", "-f", str(EXAMPLES / file)
        )
        assert computed(yaml.safe_load(shown)) == ["InProgress"]


def test_dispatches_in_git_have_a_start_and_say_nothing_that_a_cancel_would_contradict() -> None:
    dispatches = [
        document for file in FLEET for document in documents(file) if document["kind"] == "Dispatch"
    ]

    assert dispatches
    for dispatch in dispatches:
        assert re.match(r"\d{4}-", dispatch["spec"]["startTime"])
        assert dispatch["spec"].keys().isdisjoint({"desiredState", "ttlSecondsAfterFinished"})


@pytest.mark.parametrize("file", ["argocd/derops.yaml", "flux/derops.yaml"])
def test_the_values_are_values_of_the_chart(file: str) -> None:
    specs = [document["spec"] for document in documents(file)]
    values = [
        each.get("values") or each["source"]["helm"]["valuesObject"]
        for each in specs
        if "values" in each or "helm" in each.get("source", {})
    ]

    assert len(values) == 1
    image = values[0]["image"]["registry"] + "/derops/operator:"
    assert image in chart.rendered(values[0])
