"""The API as a program, its account, and callers with tokens: all real."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import httpx
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import chart_manifests
from tests.stack.places import free_port
from tests.stack.processes import Process, http_ok

AUDIENCE = "derops-api"
PROGRAM = Path(sys.executable).parent / "derops-headend"
_RBAC = "rbac.authorization.k8s.io"

ROLES = ("viewer", "dispatcher", "auditor")
"""What tenants' accounts of these names may do in their namespace: the chart's roles."""


class ApiProcess:
    """``derops-headend api`` on free loopback ports, in a directory of its own."""

    def __init__(
        self,
        directory: Path,
        config: str,
        database_url: str,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (directory / "audit").mkdir(mode=0o700, exist_ok=True)
        self.port, self.ops_port = free_port(), free_port()
        self.directory = directory
        environment = {
            "DEROPS_API_LISTEN": f"127.0.0.1:{self.port}",
            "DEROPS_API_OPS_ADDRESS": "127.0.0.1",
            "DEROPS_API_OPS_PORT": str(self.ops_port),
            "DEROPS_API_DATABASE_URL": database_url,
            "DEROPS_API_DATA_DIRECTORY": str(directory / "audit"),
            "DEROPS_API_REPLICA": "api-0",
            "KUBECONFIG": config,
        }
        self.process = Process(
            "api",
            [str(PROGRAM), "api"],
            directory=directory,
            environment=environment | dict(settings or {}),
        )
        scheme = "https" if "DEROPS_API_TLS_DIRECTORY" in (settings or {}) else "http"
        self.url = f"{scheme}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self.process.start()
        try:
            self.process.wait_until(http_ok(f"http://127.0.0.1:{self.ops_port}/readyz"))
        except BaseException:
            self.process.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()

    def client(self, token: str | None = None, **options: Any) -> httpx.Client:
        """Return a client that shows a token with each call."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.url, headers=headers, timeout=30, **options)


@dataclass(frozen=True, slots=True)
class Tenant:
    """A namespace with a ServiceAccount for each role, and one without any right."""

    kube: ControlPlane
    namespace: str

    def token(self, role: str, audience: str = AUDIENCE) -> str:
        """Return a token of the account of a role: viewer, dispatcher, auditor, nobody."""
        return make_token(self.kube, self.namespace, role, audience)


def make_token(
    kube: ControlPlane, namespace: str, account: str, audience: str | None = AUDIENCE
) -> str:
    """Return a token as a person would make it; without an audience it is the cluster's own."""
    wanted = [f"--audience={audience}"] if audience else []
    return kube.kubectl(
        "create", "token", account, "-n", namespace, "--duration=2h", *wanted
    ).strip()


def make_tenant(kube: ControlPlane, namespace: str) -> Tenant:
    """Make a namespace with its accounts; those of the roles have their rights there."""
    accounts = [*ROLES, "nobody"]
    kube.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})
    kube.apply(
        *(
            {
                "apiVersion": "v1",
                "kind": "ServiceAccount",
                "metadata": {"name": account, "namespace": namespace},
            }
            for account in accounts
        )
    )
    shipped = {each["metadata"]["name"]: each for each in chart_manifests("roles.yaml")}
    for role in ROLES:
        kube.apply(
            {
                "apiVersion": f"{_RBAC}/v1",
                "kind": "ClusterRole",
                "metadata": {"name": f"test-{role}"},
                "rules": shipped[f"derops-{role}"]["rules"],
            },
            {
                "apiVersion": f"{_RBAC}/v1",
                "kind": "RoleBinding",
                "metadata": {"name": role, "namespace": namespace},
                "roleRef": {"apiGroup": _RBAC, "kind": "ClusterRole", "name": f"test-{role}"},
                "subjects": [{"kind": "ServiceAccount", "name": role, "namespace": namespace}],
            },
        )
    return Tenant(kube, namespace)


def problem(answer: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """Check that an answer is a problem as each must be, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["cache-control"] == "no-store"
    body: dict[str, Any] = json.loads(answer.content)
    assert body["type"] == f"https://derops.io/problems/{slug}"
    assert body["status"] == status
    assert body["instance"] == f"urn:uuid:{answer.headers['x-request-id']}"
    return body
