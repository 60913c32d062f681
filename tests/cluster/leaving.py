"""Taking derops away by hand after it was uninstalled, and looking for what is left of it."""

from collections.abc import Callable

from tests.cluster import installing
from tests.cluster.cluster import Cluster
from tests.cluster.installing import NAMESPACE
from tests.cluster.site import Site
from tests.waiting import eventually

KEPT = ["Secret/derops-agent-ca"]
"""In cert-manager's namespace: the key of the agents' authority, for whoever installs again."""

CRDS = ("dispatches.derops.io", "derassets.derops.io")


def finalizers(site: Site) -> dict[str, list[str] | None]:
    """Return what keeps each resource of the site from going."""
    return {
        each["metadata"]["name"]: each["metadata"].get("finalizers")
        for each in site.cluster.items("derassets,dispatches", "-n", site.namespace)
    }


def written_by_operator(site: Site) -> set[str]:
    """Return what of the operator's own writing is there, that it writes again after all."""
    wanted = (
        ("configmap", "derops-server-ca", site.namespace),
        ("certificate", "derops-agent-trust", NAMESPACE),
        ("secret", "derops-agent-trust", NAMESPACE),
    )
    return {
        f"{kind}/{name}"
        for kind, name, namespace in wanted
        if site.cluster.kubectl("get", kind, name, "-n", namespace, "--ignore-not-found")
    }


def delete_by_hand(cluster: Cluster, site: Site) -> None:
    """Delete namespaces and kinds as a person would; all of it ends within a minute or two."""
    cluster.kubectl(
        "delete", "namespace", site.namespace, NAMESPACE, "--ignore-not-found", "--timeout=120s"
    )
    cluster.kubectl("delete", "crd", *CRDS, "--ignore-not-found", "--timeout=60s")


def assert_nothing_left(cluster: Cluster) -> None:
    """Fail while something of ours is left, in no namespace or with cert-manager."""
    _await_none(lambda: installing.left_cluster_wide(cluster))
    _await_none(
        lambda: [each for each in installing.left_with_cert_manager(cluster) if each not in KEPT]
    )
    cluster.kubectl("delete", "secret", "derops-agent-ca", "-n", "cert-manager")


def _await_none(look: Callable[[], list[str]]) -> None:
    """Volumes are given back a moment after their claims."""
    last: list[str] = []

    def gone() -> bool:
        last[:] = look()
        return not last

    try:
        eventually(gone, "nothing of ours to be left", 30)
    except AssertionError as error:
        raise AssertionError(f"{error}: {last}") from None
