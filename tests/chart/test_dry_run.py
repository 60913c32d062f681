"""A real API server takes what the chart renders."""

import importlib
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.rendering import VARIANTS, values_of
from tests.stack import gitops, places
from tests.stack.chart import NAMESPACE, documents, rendered
from tests.stack.controlplane import ControlPlane

HOOKS = "helm.sh/hook"
CLUSTER_HAS_NOT = {"PodMonitor", "PrometheusRule"}


def namespace(name: str, **labels: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


@pytest.fixture(scope="module")
def cluster(kube: ControlPlane) -> Iterator[ControlPlane]:
    """Return a control plane that knows the Gateway API."""
    files = [option for file in gitops.gateway_api() for option in ("-f", str(file))]
    kube.kubectl("apply", "--server-side", *files)
    kube.kubectl("wait", "--for=condition=Established", *files, "--timeout=90s")
    yield kube
    kube.kubectl("delete", *files)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda each: each.stem)
def test_all_of_it_is_taken_and_restricted(cluster: ControlPlane, variant: Path) -> None:
    kube = cluster
    values = values_of(variant)
    kube.apply(
        namespace(values.get("certManager", {}).get("namespace", "cert-manager")),
        namespace(NAMESPACE, **{"pod-security.kubernetes.io/warn": "restricted"}),
    )
    manifests = [each for each in documents(values) if each["kind"] not in CLUSTER_HAS_NOT]
    accounts = [each for each in manifests if each["kind"] == "ServiceAccount"]
    there = kube.kubectl("get", "serviceaccounts", "-n", NAMESPACE, "-o", "name").split()
    kube.apply(*accounts)  # a dry run of a Pod looks for the one it names

    done = subprocess.run(
        [
            kube.binaries.kubectl, f"--kubeconfig={kube.kubeconfig}",
            "apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-",
        ],
        input=yaml.safe_dump_all(manifests), capture_output=True, text=True, check=False,
    )  # fmt: skip

    for account in accounts:
        name = f"serviceaccount/{account['metadata']['name']}"
        if name not in there:  # another test's program may run as one that was
            kube.kubectl("delete", name, "-n", NAMESPACE)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == len(manifests)


def test_the_manifests_without_helm_are_taken_in_one_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(places.REPOSITORY / "scripts"))
    script = importlib.import_module("chart")
    values = values_of(script.PILOT)
    file = tmp_path / "install.yaml"
    file.write_text(script.install_yaml(values, rendered(values)), encoding="utf-8")

    with ControlPlane() as fresh:
        fresh.kubectl("delete", "crd", "derassets.derops.io", "dispatches.derops.io")
        said = fresh.kubectl("apply", "--server-side", "-f", str(file))

        assert len(said.splitlines()) == file.read_text().count("\n---\n") + 1
        assert "PodSecurity" not in said
        fresh.kubectl("get", "derassets,dispatches", "-A")
