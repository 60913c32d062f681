"""Pods: which there are, whether they are ready, and deleting them."""

import time
from dataclasses import dataclass
from typing import Any

from tests.cluster.cluster import Cluster
from tests.e2e.acting import parse
from tests.waiting import eventually


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One pod as a person would see it with ``kubectl get``."""

    namespace: str
    name: str
    uid: str
    ready: bool

    @classmethod
    def read(cls, manifest: dict[str, Any]) -> "Pod":
        """Read a pod's manifest; one that is being deleted is not ready."""
        metadata = manifest["metadata"]
        told = {each["type"]: each["status"] for each in manifest["status"].get("conditions", [])}
        return cls(
            namespace=metadata["namespace"],
            name=metadata["name"],
            uid=metadata["uid"],
            ready=told.get("Ready") == "True" and "deletionTimestamp" not in metadata,
        )


def pods_of(cluster: Cluster, component: str, namespace: str) -> list[Pod]:
    """Return the pods of a component of ours."""
    selector = f"app.kubernetes.io/name=derops,app.kubernetes.io/component={component}"
    return [Pod.read(each) for each in cluster.items("pods", "-n", namespace, "-l", selector)]


def pod_of(cluster: Cluster, component: str, namespace: str) -> Pod:
    """Return the one pod of a component, which must be ready."""
    (pod,) = pods_of(cluster, component, namespace)
    assert pod.ready, f"{pod.name} is not ready"
    return pod


def wait_for_pod(
    cluster: Cluster, namespace: str, name: str, patience_seconds: float = 120
) -> None:
    """Wait until a pod of this name is there and ready."""

    def look() -> bool:
        found = cluster.items("pods", "-n", namespace, "--field-selector", f"metadata.name={name}")
        return any(Pod.read(each).ready for each in found)

    eventually(look, f"{namespace}/{name} to be ready", patience_seconds)


def wait_for_new_life(
    cluster: Cluster, component: str, namespace: str, since: float, patience_seconds: float = 180
) -> None:
    """Wait until a component's one pod is ready, with containers of which none is older.

    Right after all of a node ended, its API server still tells of the pods as they were before.

    Args:
        cluster: Where.
        component: Which part of ours.
        namespace: Where its one pod is.
        since: When the life before ended, in seconds since 1970; the clock is the node's.
        patience_seconds: How long to wait.
    """
    selector = f"app.kubernetes.io/name=derops,app.kubernetes.io/component={component}"

    def look() -> bool:
        found = cluster.items("pods", "-n", namespace, "-l", selector)
        return len(found) == 1 and Pod.read(found[0]).ready and _oldest(found[0]) >= int(since)

    eventually(look, f"{component} to be ready in a new life", patience_seconds)


def _oldest(manifest: dict[str, Any]) -> float:
    """Return when the oldest container of a pod began; one that does not run is of no age."""
    states = [each["state"] for each in manifest["status"].get("containerStatuses", [])]
    begun = [state["running"]["startedAt"] if "running" in state else "" for state in states]
    return min(parse(moment).timestamp() if moment else 0.0 for moment in begun or [""])


def delete_pod(cluster: Cluster, component: str, namespace: str, *, force: bool) -> float:
    """Delete a component's pod; return the seconds until another one is ready in its place.

    Args:
        cluster: Where.
        component: Which part of ours.
        namespace: Where its one pod is.
        force: Without a time to end in, as ``kubectl delete --force --grace-period=0``.
    """
    old = pod_of(cluster, component, namespace)
    arguments = ["--force", "--grace-period=0"] if force else ["--wait=false"]
    since = time.monotonic()
    cluster.kubectl("delete", "pod", old.name, "-n", namespace, *arguments)
    eventually(
        lambda: any(
            pod.ready and pod.uid != old.uid for pod in pods_of(cluster, component, namespace)
        ),
        f"{component} to be ready after its pod was deleted",
        180,
    )
    return time.monotonic() - since
