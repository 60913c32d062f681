"""build/cluster.json: what there is of a cluster, for tests and for people."""

import json
from pathlib import Path
from typing import Any

from tests.kind import programs
from tests.kind.certmanager import Tools
from tests.kind.cluster import Cluster
from tests.kind.docker import Daemon
from tests.kind.errors import ClusterError
from tests.stack import places

FILE = "cluster.json"


def write(build_directory: Path, tools: Tools, cluster: Cluster | None) -> None:
    """Write cluster.json."""
    state = {
        "kubeconfig": str(tools.kubeconfig),
        "kubectl": str(tools.kubectl),
        "helm": str(tools.helm),
        "helmUnittest": str(programs.have("helm-unittest")),
        "kind": cluster.name if cluster else None,
        "dockerHost": cluster.daemon.host if cluster else None,
    }
    build_directory.mkdir(parents=True, exist_ok=True)
    file = build_directory / FILE
    part = file.with_suffix(".part")
    part.write_text(json.dumps(state, indent=2) + "\n")
    part.rename(file)


def read(build_directory: Path = places.BUILD) -> dict[str, Any] | None:
    """Return what cluster.json says; None = nobody wrote one."""
    try:
        state: dict[str, Any] = json.loads((build_directory / FILE).read_text())
    except FileNotFoundError:
        return None
    return state


def current(build_directory: Path = places.BUILD) -> Cluster:
    """Return the cluster of kind that cluster.json names.

    Raises:
        ClusterError: There is none, or it is none of kind's.
    """
    state = read(build_directory)
    if state is None:
        raise ClusterError("no cluster; have one with: make cluster")
    if state["kind"] is None:
        raise ClusterError("the cluster is the one of KUBECONFIG: its node is not ours")
    daemon = Daemon(state["dockerHost"], own=False)
    return Cluster(state["kind"], daemon, programs.find("kind"), Path(state["kubectl"]))
