"""A cluster with the chart's roles and policies of creators, and callers who speak HTTP with it."""

import base64
import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.crds.manifests import dispatch_manifest
from tests.stack import identities, kubeconfig
from tests.stack.controlplane import ControlPlane

ANNOTATION = "derops.io/created-by"
REQUEST_ID, REQUEST_SHA256 = "derops.io/request-id", "derops.io/request-sha256"
TENANT, ROBOTS, GITOPS = "tenant-a", "robots", "gitops"
DISPATCHES = f"/apis/derops.io/v1alpha1/namespaces/{TENANT}/dispatches"
MERGE, JSON_PATCH, APPLY = (
    f"application/{kind}" for kind in ("merge-patch+json", "json-patch+json", "apply-patch+yaml")
)

Manifest = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Caller:
    """Somebody with a ServiceAccount's token."""

    user: str
    http: httpx.Client
    program: str
    config: str

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        return kubeconfig.kubectl(self.program, self.config, *arguments, stdin=stdin)

    def create(self, manifest: Manifest, **headers: str) -> httpx.Response:
        return self.http.post(DISPATCHES, json=manifest, headers=headers)

    def patch(
        self, name: str, body: object, kind: str = MERGE, *, status: bool = False
    ) -> httpx.Response:
        return self.http.patch(
            f"{DISPATCHES}/{name}" + "/status" * status,
            content=json.dumps(body),
            headers={"Content-Type": kind},
            params={"fieldManager": "me", "force": "true"} if kind == APPLY else {},
        )

    def replace(self, manifest: Manifest, *, status: bool = False) -> httpx.Response:
        path = f"{DISPATCHES}/{manifest['metadata']['name']}" + "/status" * status
        return self.http.put(path, json=manifest)

    def get(self, name: str) -> Manifest:
        answer = self.http.get(f"{DISPATCHES}/{name}")
        found: Manifest = answer.raise_for_status().json()
        return found


@dataclass(frozen=True, slots=True)
class Cluster:
    """The control plane and its callers."""

    control_plane: ControlPlane
    author: Caller
    """May order in the tenant's namespace; its account lives elsewhere."""

    gitops: Caller
    """May do everything, and applies what tenants write."""

    api: Caller
    """The API's own account."""

    def annotations(self, name: str) -> dict[str, str]:
        """Return all annotations of a dispatch."""
        found: dict[str, str] = self.gitops.get(name)["metadata"].get("annotations", {})
        return found

    def read(self, name: str) -> str:
        """Return who ordered a dispatch, as its annotation says."""
        return created_by(self.gitops.get(name))


def created_by(manifest: Manifest) -> str:
    said: str = manifest["metadata"].get("annotations", {}).get(ANNOTATION, "")
    return said


def dispatch(name: str, said: str | None = None, **spec: Any) -> Manifest:
    """Return a Dispatch, whose author claims that somebody ordered it."""
    metadata: Manifest = {"namespace": TENANT}
    if said is not None:
        metadata["annotations"] = {ANNOTATION: said}
    given = {"setpoint": {"mode": "CeaseToEnergize"}, "durationSeconds": 5, **spec}
    return dispatch_manifest(name, metadata=metadata, **given)


@contextmanager
def cluster(*, stamped: bool = True) -> Iterator[Cluster]:
    """Start a cluster; ``stamped``: it has the mutating policy too."""
    with ControlPlane() as control_plane:
        identities.install_creator_policies(control_plane)
        if not stamped:
            control_plane.kubectl("delete", "mutatingadmissionpolicybinding", "derops-creator")
            identities.wait_until_unstamped(control_plane)
        control_plane.apply(*identities.chart_manifests("roles.yaml"))
        for namespace in (TENANT, ROBOTS, GITOPS):
            control_plane.kubectl("create", "namespace", namespace)
        for namespace, name in ((ROBOTS, "author"), (GITOPS, "controller")):
            control_plane.kubectl("create", "serviceaccount", name, "-n", namespace)
        control_plane.kubectl(
            "create", "rolebinding", "author", "-n", TENANT, "--clusterrole=derops-dispatcher",
            f"--serviceaccount={ROBOTS}:author",
        )  # fmt: skip
        control_plane.kubectl(
            "create", "clusterrolebinding", "gitops", "--clusterrole=cluster-admin",
            f"--serviceaccount={GITOPS}:controller",
        )  # fmt: skip
        accounts = (
            (ROBOTS, "author"),
            (GITOPS, "controller"),
            (identities.NAMESPACE, "derops-api"),
        )
        callers = [_caller(control_plane, *account) for account in accounts]
        yield Cluster(control_plane, *callers)
        for caller in callers:
            caller.http.close()


def _caller(control_plane: ControlPlane, namespace: str, name: str) -> Caller:
    config = (
        identities.program_kubeconfig(control_plane, "api")
        if name == "derops-api"
        else control_plane.service_account_kubeconfig(namespace, name)
    )
    known = json.loads(Path(config).read_text(encoding="utf-8"))
    authority = base64.b64decode(known["clusters"][0]["cluster"]["certificate-authority-data"])
    http = httpx.Client(
        base_url=control_plane.server,
        verify=ssl.create_default_context(cadata=authority.decode()),
        headers={"Authorization": f"Bearer {known['users'][0]['user']['token']}"},
        timeout=60,
    )
    user = f"system:serviceaccount:{namespace}:{name}"
    return Caller(user, http, control_plane.binaries.kubectl, config)
