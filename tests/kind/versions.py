"""Which Kubernetes a cluster must have."""

import json
import re
from pathlib import Path

from tests.kind.errors import ClusterError
from tests.kind.shell import run

MINIMUM = (1, 36)
"""The oldest that our tests ran on."""


def of_server(kubectl: Path, kubeconfig: Path) -> str:
    """Return which version the API server says it has."""
    answer = run(
        [kubectl, f"--kubeconfig={kubeconfig}", "--request-timeout=20s", "get", "--raw", "/version"]
    )
    return str(json.loads(answer)["gitVersion"])


def of_client(kubectl: str) -> str:
    """Return which version a kubectl has."""
    answer = run([kubectl, "version", "--client", "--output=json"])
    return str(json.loads(answer)["clientVersion"]["gitVersion"])


def fits(client: str, server: str) -> bool:
    """Tell whether kubectl of one version may speak to an API server of another."""
    ours, theirs = _minor(client), _minor(server)
    return ours[0] == theirs[0] and abs(ours[1] - theirs[1]) <= 1


def check(version: str) -> None:
    """Refuse a Kubernetes that is too old.

    Raises:
        ClusterError: It is, or its version cannot be read.
    """
    if _minor(version) < MINIMUM:
        least = ".".join(map(str, MINIMUM))
        raise ClusterError(
            f"the cluster has Kubernetes {version}, and derops needs {least} or newer: upgrade it,"
            " or unset KUBECONFIG to have a cluster made"
        )


def _minor(version: str) -> tuple[int, int]:
    found = re.match(r"v(\d+)\.(\d+)", version)
    if found is None:
        raise ClusterError(f"{version!r} is no version of Kubernetes such as v1.36.3")
    return int(found[1]), int(found[2])
