"""What is asked of Kubernetes: each thing once, side by side, and none waits for what is missing.

Nothing is changed. What the caller may not see becomes a ``Missing``.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from derops.installation import CONFIG_MAP
from derops.resources.derassets import DERAsset
from derops.resources.dispatches import Dispatch
from derops_cli import reading
from derops_cli.errors import CannotLookError, UsageError
from derops_cli.evidence import (
    CertificateSeen,
    EventSeen,
    Installation,
    Missing,
    Surroundings,
    Workload,
)
from derops_cli.kubectl import Kubectl, items_of, utc_now

T = TypeVar("T")

GROUP = "/apis/derops.io/v1alpha1"
MOST_PAGES, PAGE_ROWS = 10, 2000
"""The most objects of a kind that are read: whoever makes objects chooses how many there are."""

MOST_EVENTS = 500
_NEAR, _NEAR_SHARE = 5, 0.5
_WORKLOADS = (
    ("Deployment", "/apis/apps/v1", "deployments"),
    ("StatefulSet", "/apis/apps/v1", "statefulsets"),
    ("Pod", "/api/v1", "pods"),
)
_OURS = "app.kubernetes.io/name=derops"


@dataclass(frozen=True, slots=True)
class Cluster:
    """Where to look: by whose rights, and where derops runs."""

    kubectl: Kubectl
    system: str

    def namespaced(self, namespace: str, plural: str, name: str = "") -> str:
        """Return the path of objects of ours."""
        return f"{GROUP}/namespaces/{namespace}/{plural}" + (f"/{name}" if name else "")


def side_by_side(*asks: Callable[[], Any]) -> list[Any]:
    """Call all at once, and return what each returns."""
    with ThreadPoolExecutor(len(asks)) as pool:
        return [each.result() for each in [pool.submit(ask) for ask in asks]]


def look_around(cluster: Cluster) -> Surroundings:
    """Look at what is the same for all assets."""
    ahead, installation, workloads = side_by_side(
        lambda: cluster.kubectl.clock_ahead_seconds(utc_now()),
        lambda: look_at_installation(cluster),
        lambda: look_at_workloads(cluster),
    )
    return Surroundings(installation=installation, workloads=workloads, clock_ahead_seconds=ahead)


def look_at_installation(cluster: Cluster) -> Installation | Missing:
    """Look at what the operator says of all."""
    path = f"/api/v1/namespaces/{cluster.system}/configmaps/{CONFIG_MAP}"
    found = cluster.kubectl.get(path, f"ConfigMap {CONFIG_MAP} in {cluster.system}")
    if not isinstance(found, Missing):
        return reading.read_installation(found)
    if found.absent:
        why = (
            f"there is no ConfigMap {CONFIG_MAP} in {cluster.system}: the operator is of an "
            "earlier version, has not started yet, or runs elsewhere (--derops-namespace)"
        )
        return Missing(found.what, why, absent=True)
    return found


def look_at_workloads(cluster: Cluster) -> tuple[Workload, ...] | Missing:
    """Look at what runs in derops' own namespace."""
    answers = side_by_side(*(_asker(cluster, root, plural) for _, root, plural in _WORKLOADS))
    found: list[Workload] = []
    for (kind, _, _), answer in zip(_WORKLOADS, answers, strict=True):
        if isinstance(answer, Missing):
            return answer
        found += [reading.read_workload(kind, each) for each in items_of(answer)]
    return tuple(found)


def _asker(cluster: Cluster, root: str, plural: str) -> Callable[[], dict[str, Any] | Missing]:
    path = f"{root}/namespaces/{cluster.system}/{plural}"
    what = f"{plural} in {cluster.system}"
    return lambda: cluster.kubectl.get(path, what, labelSelector=_OURS, limit="100")


def look_at_events(
    cluster: Cluster, namespace: str, kind: str, name: str
) -> tuple[EventSeen, ...] | Missing:
    """Look at the Events of an object."""
    found = cluster.kubectl.get(
        f"/api/v1/namespaces/{namespace}/events",
        f"Events in {namespace}",
        fieldSelector=f"involvedObject.kind={kind},involvedObject.name={name}",
        limit=str(MOST_EVENTS),
    )
    return found if isinstance(found, Missing) else reading.read_events(items_of(found))


def look_at_certificate(
    cluster: Cluster, namespace: str, asset: str
) -> CertificateSeen | Missing | None:
    """Look at the Certificate of an asset."""
    found = cluster.kubectl.get(
        f"/apis/cert-manager.io/v1/namespaces/{namespace}/certificates",
        f"Certificates in {namespace}",
        labelSelector=f"derops.io/asset={asset}",
        limit="5",
    )
    return found if isinstance(found, Missing) else reading.read_certificate(items_of(found))


def find_asset(cluster: Cluster, namespace: str | None, name: str) -> DERAsset:
    """Return an asset by name; without a namespace, that of the context comes first.

    Raises:
        UsageError: There is none of this name, or several; or it cannot be read.
        CannotLookError: Nothing may be looked at, or nobody answers.
    """
    return _read(reading.read_asset, _find(cluster, namespace, name, "derassets", "DERAsset"))


def find_dispatch(cluster: Cluster, namespace: str | None, name: str) -> Dispatch:
    """Return a Dispatch by name; see ``find_asset``."""
    return _read(reading.read_dispatch, _find(cluster, namespace, name, "dispatches", "Dispatch"))


def list_all(
    cluster: Cluster, namespace: str | None, plural: str, **parameters: str
) -> list[dict[str, Any]] | Missing:
    """Return objects of a kind of ours, of one namespace or of all; the first pages if many."""
    place = f"in {namespace}" if namespace else "in all namespaces"
    path = cluster.namespaced(namespace, plural) if namespace else f"{GROUP}/{plural}"
    found: list[dict[str, Any]] = []
    parameters |= {"limit": str(PAGE_ROWS)}
    for _ in range(MOST_PAGES):
        answer = cluster.kubectl.get(path, f"{plural} {place}", **parameters)
        if isinstance(answer, Missing):
            return answer
        found += items_of(answer)
        going_on = (answer.get("metadata") or {}).get("continue")
        if not going_on:
            break
        parameters["continue"] = str(going_on)
    return found


def list_visible(
    cluster: Cluster, namespace: str | None, plural: str
) -> tuple[list[dict[str, Any]] | Missing, str]:
    """Return objects of a namespace, or of all, or of the context's; and of which one."""
    if namespace is not None:
        return list_all(cluster, namespace, plural), namespace
    found = list_all(cluster, None, plural)
    if not isinstance(found, Missing) or found.right is None:
        return found, ""
    own = cluster.kubectl.default_namespace()
    return list_all(cluster, own, plural), own


def _find(
    cluster: Cluster, namespace: str | None, name: str, plural: str, kind: str
) -> Mapping[str, Any]:
    own = namespace or cluster.kubectl.default_namespace()
    found = cluster.kubectl.get(cluster.namespaced(own, plural, name), f"{kind} {name}")
    if not isinstance(found, Missing):
        return found
    _refuse_unknown(found, kind)
    may_be_elsewhere = found.absent or (namespace is None and found.right is not None)
    known = _list_near(cluster, own, plural) if may_be_elsewhere else None
    if known is None and not found.absent:
        raise CannotLookError(found.why)
    return _choose(known or (), namespace, own, name, kind)


def _refuse_unknown(found: Missing, kind: str) -> None:
    if found.absent and "the server could not find the requested resource" in found.why:
        raise CannotLookError(f"this cluster does not know the kind {kind}: is derops installed?")


def _list_near(cluster: Cluster, own: str, plural: str) -> list[dict[str, Any]] | None:
    """Return objects of all namespaces, or of one's own; None = neither may be seen."""
    for namespace in (None, own):
        found = list_all(cluster, namespace, plural)
        if not isinstance(found, Missing):
            return found
    return None


def _choose(
    known: Iterable[Mapping[str, Any]], namespace: str | None, own: str, name: str, kind: str
) -> Mapping[str, Any]:
    """Return the only object of a name, where no namespace was asked for.

    Raises:
        UsageError: There is none, or several; the message says what there is.
    """
    known = list(known)
    named = [each for each in known if each["metadata"]["name"] == name]
    if len(named) == 1 and namespace is None:
        return named[0]
    places = ", ".join(sorted(each["metadata"]["namespace"] for each in named))
    if places:
        raise UsageError(f"no {kind} {name} in {own}; there is one in: {places} (choose by -n)")
    names = sorted({each["metadata"]["name"] for each in known})
    near = difflib.get_close_matches(name, names, _NEAR, _NEAR_SHARE)
    there = f"; near names: {', '.join(near)}" if near else ""
    raise UsageError(f"no {kind} {name} in {own}{there}")


def _read(read: Callable[[Mapping[str, Any]], T | Missing], manifest: Mapping[str, Any]) -> T:
    found = read(manifest)
    if isinstance(found, Missing):
        name = manifest["metadata"]["name"]
        raise CannotLookError(f"{found.what} {name} cannot be read: {found.why}")
    return found
