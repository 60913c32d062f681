"""The real plugin on a real API server: callers with rights of their own, and what they see."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from tests.cli.seeing import manifest
from tests.stack import identities
from tests.stack.controlplane import ControlPlane

from derops.installation import CONFIG_MAP, KEY, LINKS

PROGRAM = Path(sys.executable).parent / "kubectl-derops"
SYSTEM, TENANT, OTHER = "derops-system", "pilot-north", "pilot-south"
SECONDS = "60"
"""The time-out that tests give: a busy machine is no fault."""


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float = 0.0

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found


def run(*arguments: str, kubeconfig: str, environment: dict[str, str] | None = None) -> Ran:
    """Run the plugin as a person would, with the kubectl of this machine."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:  # kubectl keeps a cache there
        done = subprocess.run(
            [PROGRAM, *arguments],
            env={"PATH": "/usr/local/bin:/usr/bin:/bin", "KUBECONFIG": kubeconfig, "HOME": home}
            | (environment or {}),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - began)


def patient(*arguments: str, kubeconfig: str) -> Ran:
    return run(*arguments, f"--timeout={SECONDS}", kubeconfig=kubeconfig)


def fresh_config_map(age_seconds: float = 0, **faults: Any) -> dict[str, Any]:
    """Return the operator's ConfigMap as of so long ago by the real clock."""
    at = datetime.now(UTC) - timedelta(seconds=age_seconds)
    moment = at.isoformat(timespec="seconds").replace("+00:00", "Z")
    status = {
        "observedAt": moment,
        "conditions": [
            {
                "type": kind,
                "status": "False" if kind in faults else "True",
                "reason": faults.get(kind, "Holds"),
                "message": f"what {kind} says",
                "lastTransitionTime": moment,
            }
            for kind in LINKS
        ],
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": SYSTEM},
        "data": {KEY: json.dumps(status)},
    }


def make_asset(
    plane: ControlPlane, name: str, *conditions: dict[str, Any], namespace: str = TENANT
) -> None:
    """Create an asset with a status, as the operator would write it."""
    full = manifest(*conditions, not_after_seconds=-864_000_000)
    full["metadata"] = {"name": name, "namespace": namespace}
    status = full.pop("status")
    plane.kubectl("create", "-f", "-", stdin=json.dumps(full))
    plane.kubectl(
        "patch", "derasset", name, "-n", namespace, "--subresource=status", "--type=merge",
        "-p", json.dumps({"status": status}),
    )  # fmt: skip


def make_caller(
    plane: ControlPlane, name: str, *bindings: tuple[str, str], roles: Sequence[str] = ()
) -> str:
    """Return the kubeconfig of an account with ClusterRoles in namespaces; empty = in all."""
    plane.kubectl("create", "serviceaccount", name, "-n", "callers")
    account = f"--serviceaccount=callers:{name}"
    for number, (role, namespace) in enumerate(bindings):
        kind = ("rolebinding", "-n", namespace) if namespace else ("clusterrolebinding",)
        plane.kubectl(
            "create", kind[0], f"{name}-{number}", *kind[1:], f"--clusterrole={role}", account
        )
    return plane.service_account_kubeconfig("callers", name)


def prepare(plane: ControlPlane) -> None:
    """Make the roles of the chart, and namespaces."""
    plane.apply(*identities.chart_manifests("roles.yaml"))
    for namespace in ("callers", TENANT, OTHER):
        plane.kubectl("create", "namespace", namespace)
