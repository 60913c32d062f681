"""Attacks of a colleague with the stock role ``edit`` in a tenant's namespace of our examples."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.attacks.kubernetes_callers import dispatch
from tests.stack import kubeconfig
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import chart_manifests
from tests.stack.places import REPOSITORY
from tests.stack.processes import StackError
from tests.waiting import until

EXAMPLES = REPOSITORY / "examples"
PLATFORM = ["gitops/access/access.yaml", "gitops/tenants/pilot-north.yaml"]
TENANT, ACCESS, DEROPS = "pilot-north", "derops-access", "derops-system"
EDITOR = "--as=editor"
POWER = {"derops-dispatcher", "derops-asset-admin"}


@pytest.fixture(scope="module")
def platform(kube: ControlPlane) -> Iterator[ControlPlane]:
    """Return a control plane with the chart's roles, the examples' tenant, and ``edit`` there."""
    roles = chart_manifests("roles.yaml")
    kube.apply(*roles)
    for file in PLATFORM:
        kube.kubectl("apply", "-f", str(EXAMPLES / file))
    kube.kubectl(
        "create", "rolebinding", "editor", "-n", TENANT, "--clusterrole=edit", "--user=editor"
    )
    yield kube
    for file in reversed(PLATFORM):
        kube.kubectl("delete", "-f", str(EXAMPLES / file), "--wait=false")
    kube.kubectl(
        "delete", "-f", "-", stdin=json.dumps({"kind": "List", "apiVersion": "v1", "items": roles})
    )


def refused(kube: ControlPlane, *arguments: str, stdin: str | None = None) -> None:
    with pytest.raises(StackError, match="orbidden"):
        kube.kubectl(*arguments, stdin=stdin)


def order() -> str:
    manifest = dispatch("ordered-by-editor")
    manifest["metadata"]["namespace"] = TENANT
    return json.dumps(manifest)


async def test_the_stock_role_moves_no_device_not_even_as_an_account_of_its_namespace(
    platform: ControlPlane, tmp_path: Path
) -> None:
    """R85: whoever has ``edit`` orders, or makes a token of an account that may."""

    def accounts() -> list[str]:
        try:
            listed = platform.kubectl("get", "serviceaccounts", "-n", TENANT, "-o", "name", EDITOR)
        except StackError:  # the stock role is filled by a controller, which takes a moment
            return []
        return [name.removeprefix("serviceaccount/") for name in listed.split()]

    await until(accounts)
    create = ["create", "-f", "-"]
    refused(platform, *create, EDITOR, stdin=order())
    for account in [*accounts(), "pilot-north-dispatches"]:
        named = f"--as=system:serviceaccount:{TENANT}:{account}"
        refused(platform, *create, named, stdin=order())
    known = json.loads(Path(platform.kubeconfig).read_text(encoding="utf-8"))
    for account in accounts():
        # The role may do this, which is why the account must have no power.
        token = platform.kubectl("create", "token", account, "-n", TENANT, EDITOR).strip()
        known["users"][0]["user"] = {"token": token}
        config = tmp_path / f"{account}.kubeconfig"
        config.write_text(json.dumps(known), encoding="utf-8")
        with pytest.raises(StackError, match="orbidden"):
            kubeconfig.kubectl(platform.binaries.kubectl, str(config), *create, stdin=order())
    for namespace, account in (
        (ACCESS, "pilot-north-dispatches"), (DEROPS, "derops-api"), (DEROPS, "derops-operator"),
    ):  # fmt: skip
        refused(platform, "create", "token", account, "-n", namespace, EDITOR)
    bind = ["create", "rolebinding", "mine", "-n", TENANT, "--clusterrole=derops-dispatcher"]
    refused(platform, *bind, "--user=editor", EDITOR)


def manifests() -> Iterator[dict[str, Any]]:
    for file in EXAMPLES.rglob("*.yaml"):
        yield from (each for each in yaml.safe_load_all(file.read_text("utf-8")) if each)


def test_no_example_gives_power_to_an_account_of_the_namespace_that_it_is_for() -> None:
    bindings = [each for each in manifests() if each.get("kind") == "RoleBinding"]
    powerful = [each for each in bindings if each["roleRef"]["name"] in POWER]

    assert powerful
    for binding in powerful:
        homes = {each.get("namespace") for each in binding["subjects"]}
        assert binding["metadata"]["namespace"] not in homes


def test_no_page_gives_power_to_an_account_of_the_namespace_that_it_is_for() -> None:
    pages = "\n".join(
        page.read_text(encoding="utf-8")
        for folder in ("docs", "examples", "charts")
        for page in (REPOSITORY / folder).rglob("*.md")
    ).replace("\\\n", " ")
    commands = [
        line
        for line in re.findall(r"kubectl create rolebinding .*", pages)
        if any(f"--clusterrole={role}" in line for role in POWER) and "--serviceaccount" in line
    ]

    assert commands
    for command in commands:
        home = re.search(r"--serviceaccount[= ]([^: ]+):", command)
        where = re.search(r"(?:-n|--namespace)[= ](\S+)", command)
        assert home
        assert where
        assert home[1] != where[1], command
