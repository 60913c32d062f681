"""Install derops in the cluster, by chart or by rendered manifests, and take all of it away."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tests.cluster.cluster import Cluster, HelmError
from tests.cluster.pods import pods_of
from tests.cluster.site import TEST_LABEL, namespace_manifest
from tests.stack import places
from tests.stack.processes import StackError

NAMESPACE = "derops-system"
RELEASE = "derops"
CHART = places.REPOSITORY / "charts" / "derops"
VALUES = places.REPOSITORY / "tests" / "cluster" / "values.yaml"
COMPONENTS = ("operator", "headend", "database", "api")
WORKLOADS = (
    "deployment/derops-operator",
    "statefulset/derops-headend",
    "statefulset/derops-postgresql",
    "statefulset/derops-api",
)
READY_SECONDS = 180
_FINALIZED = ("dispatches.derops.io", "derassets.derops.io")
_CERT_MANAGER = "cert-manager"


def install_by_chart(cluster: Cluster, *arguments: str) -> float:
    """Install the chart, wait until all is ready, and return the seconds that took."""
    cluster.apply(namespace_manifest(NAMESPACE))
    since = time.monotonic()
    try:
        cluster.helm(
            "upgrade", "--install", RELEASE, str(CHART), "-n", NAMESPACE, "-f", str(VALUES),
            "--wait", "--timeout", f"{READY_SECONDS}s", *arguments,
        )  # fmt: skip
    except HelmError as error:
        raise HelmError(f"{error}\n{standing(cluster)}") from None
    return time.monotonic() - since


def render() -> Path:
    """Return the file of manifests that ``make install-yaml`` renders, with the tests' values."""
    file = places.BUILD / "install-test.yaml"
    subprocess.run(
        [sys.executable, "scripts/chart.py", "install-yaml", str(file), str(VALUES)],
        cwd=places.REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(places.REPOSITORY)},
        check=True,
    )
    return file


def ensure_installed(cluster: Cluster) -> None:
    """Install the chart unless it is installed and ready."""
    if not is_installed(cluster):
        install_by_chart(cluster)
    wait_until_ready(cluster)


def is_installed(cluster: Cluster) -> bool:
    """Return whether the chart's release is there and its last install went well."""
    releases = json.loads(cluster.helm("list", "-n", NAMESPACE, "--deployed", "-o", "json"))
    return any(each["name"] == RELEASE for each in releases)


def wait_until_ready(cluster: Cluster) -> None:
    """Wait until every part is ready."""
    for workload in WORKLOADS:
        cluster.kubectl(
            "rollout", "status", workload, "-n", NAMESPACE, f"--timeout={READY_SECONDS}s"
        )
    for component in COMPONENTS:
        assert all(pod.ready for pod in pods_of(cluster, component, NAMESPACE)), component


def standing(cluster: Cluster) -> str:
    """Return how the pods of derops stand and what their Events complain of, for a person."""
    where = ["-n", NAMESPACE]
    pods = cluster.kubectl("get", "pods", *where)
    warnings = cluster.kubectl(
        "get", "events", *where, "--field-selector=type=Warning", "--sort-by=.lastTimestamp"
    )
    return "\n".join([pods, *warnings.splitlines()[-12:]])


def remove(cluster: Cluster) -> None:
    """Take away all of derops, whatever state it is in, and all that tests made with it.

    This is the tests' own broom: how a person takes derops away is what test_uninstall.py is about.
    """
    try:
        cluster.helm("uninstall", RELEASE, "-n", NAMESPACE, "--no-hooks", "--ignore-not-found")
    except HelmError as error:
        print(f"helm: {error}", flush=True)
    for kind in _FINALIZED:
        _release(cluster, kind)
    ours = [
        each["metadata"]["name"] for each in cluster.items("namespaces", "-l", f"{TEST_LABEL}=true")
    ]
    cluster.kubectl("delete", "namespace", NAMESPACE, *ours, "--ignore-not-found", "--timeout=120s")
    for each in (*left_cluster_wide(cluster), *left_with_cert_manager(cluster)):
        kind, name = each.split("/", 1)
        cluster.kubectl(
            "delete", kind, name, "-n", _CERT_MANAGER, "--ignore-not-found", "--timeout=60s"
        )


def left_cluster_wide(cluster: Cluster) -> list[str]:
    """Return what is ours among all objects that lie in no namespace, as ``kind.group/name``."""
    kinds = cluster.kubectl("api-resources", "--namespaced=false", "--verbs=list", "-o", "name")
    return sorted(
        _label(each)
        for each in cluster.items(",".join(kinds.split()))
        # A node has the name of its cluster, which may be that of the product.
        if each["kind"] not in ("Node", "CSINode")
        and (_is_ours(each) or _claims(each) == NAMESPACE)
    )


def left_with_cert_manager(cluster: Cluster) -> list[str]:
    """Return what is ours in cert-manager's namespace, as ``kind.group/name``."""
    return [
        each
        for each in left_in(cluster, _CERT_MANAGER)
        if each.partition("/")[2].startswith("derops")
    ]


def left_in(cluster: Cluster, namespace: str) -> list[str]:
    """Return all objects of a namespace but Events and what every namespace has."""
    kinds = cluster.kubectl("api-resources", "--namespaced=true", "--verbs=list", "-o", "name")
    wanted = [kind for kind in kinds.split() if "metrics.k8s.io" not in kind]
    return sorted(
        _label(each)
        for each in cluster.items(",".join(wanted), "-n", namespace)
        if each["kind"] not in ("Event", "Lease", "PodMetrics")
        and (each["kind"], each["metadata"]["name"])
        not in (("ConfigMap", "kube-root-ca.crt"), ("ServiceAccount", "default"))
    )


def _release(cluster: Cluster, kind: str) -> None:
    """Take the finalizers off all objects of a kind, if there is such a kind."""
    try:
        found = cluster.items(kind, "-A")
    except StackError as error:
        if "the server doesn't have a resource type" in str(error):
            return
        raise
    for each in found:
        metadata = each["metadata"]
        cluster.kubectl(
            "patch", kind, metadata["name"], "-n", metadata["namespace"], "--type=merge",
            "-p", '{"metadata":{"finalizers":null}}',
        )  # fmt: skip


def _is_ours(manifest: dict[str, Any]) -> bool:
    metadata = manifest["metadata"]
    return (
        "derops" in metadata["name"]
        or metadata.get("labels", {}).get("app.kubernetes.io/name") == "derops"
    )


def _claims(manifest: dict[str, Any]) -> str | None:
    """Return for whose namespace a PersistentVolume is."""
    if manifest["kind"] != "PersistentVolume":
        return None
    namespace: str = manifest["spec"].get("claimRef", {}).get("namespace", "")
    return namespace


def _label(manifest: dict[str, Any]) -> str:
    group = manifest["apiVersion"].rpartition("/")[0].partition("/")[0]
    kind = f"{manifest['kind']}.{group}" if group else manifest["kind"]
    return f"{kind}/{manifest['metadata']['name']}"
