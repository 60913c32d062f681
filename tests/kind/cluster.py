"""One cluster that kind makes: there or not, whole or not, and how it becomes whole again."""

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml
from tests.kind.docker import FILES, Daemon
from tests.kind.errors import ClusterError
from tests.kind.shell import run, succeeds
from tests.stack import places

DEFAULT_NAME = "derops"
BUILT_IMAGES = "derops/kind-node"

_NETWORK = FILES / "10-bridge.conflist"
_WHOLE_SECONDS = 180
_LABEL = "io.x-k8s.kind.cluster"
"""What kind marks its nodes with."""


def name() -> str:
    """Return which cluster is meant: DEROPS_CLUSTER says it.

    Raises:
        ClusterError: kind takes no such name.
    """
    given = os.environ.get("DEROPS_CLUSTER") or DEFAULT_NAME
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", given):
        raise ClusterError(
            f"DEROPS_CLUSTER is {given!r}, not a name of a cluster:"
            " up to 40 small letters, digits and dashes, no dash first"
        )
    return given


def configuration(cluster: str, *, image: str | None, control_groups: int) -> dict[str, object]:
    """Return what ``kind create cluster`` is told.

    Args:
        cluster: What it is called.
        image: The image of its node, which brings no network of pods; None = kind's own.
        control_groups: Which version of control groups the machine has.
    """
    node: dict[str, object] = {"role": "control-plane"}
    if image:
        node["image"] = image
    result: dict[str, object] = {
        "kind": "Cluster",
        "apiVersion": "kind.x-k8s.io/v1alpha4",
        "name": cluster,
        "networking": {"disableDefaultCNI": image is not None},
        "nodes": [node],
    }
    if control_groups < 2:  # which kubelet refuses unless told
        patch = {"kind": "KubeletConfiguration", "failCgroupV1": False}
        result["kubeadmConfigPatches"] = [yaml.safe_dump(patch)]
    return result


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster of kind with one node."""

    name: str
    daemon: Daemon
    kind: Path
    kubectl: Path

    @property
    def node(self) -> str:
        """The container that is its node."""
        return f"{self.name}-control-plane"

    @property
    def kubeconfig(self) -> Path:
        """Where its kubeconfig is: the same for all checkouts."""
        return _kubeconfig(self.name)

    def state(self) -> str | None:
        """Return what Docker says of the node, such as running or exited; None = no such one."""
        found = self.daemon.docker(
            "container", "ls", "--all", f"--filter=name=^{self.node}$", "--format={{.State}}"
        )
        return found.strip() or None

    def built(self) -> bool:
        """Tell whether its node has an image that we built, and not one that was pulled."""
        image = self.daemon.docker("inspect", "--format={{.Config.Image}}", self.node)
        return image.startswith(BUILT_IMAGES)

    def ensure(self, image: Callable[[], str | None]) -> bool:
        """Have it run and whole: made, started again, or made anew where it cannot be mended.

        Args:
            image: Has the image for a new node; None = kind shall pull its own.

        Returns:
            Whether the node has an image that we built.
        """
        state = self.state()
        if state is None or not self._mended(state):
            if state is not None:
                print(f"cluster {self.name} is broken and cannot be mended: made anew", flush=True)
                delete(self.daemon, self.name)
            self._create(image())
        return self.built()

    def start(self) -> None:
        """Start the node again; its API server may have another port then.

        Raises:
            ClusterError: It does not become ready again.
        """
        since = datetime.now(UTC)
        self.daemon.docker("start", self.node)
        self.write_kubeconfig()
        self._have_network()
        if not self.wait_until_whole(since=since):
            raise ClusterError(
                f"the node {self.node} was started again and is not ready after {_WHOLE_SECONDS} s"
            )

    def wait_until_whole(self, *, since: datetime | None = None) -> bool:
        """Wait for the API server, the node, and what kind puts in last; tell whether they came.

        Args:
            since: When the node was started again: it stays Ready for a while after its death.
        """
        deadline = time.monotonic() + _WHOLE_SECONDS
        while not (self._whole() and (since is None or self._heard_since(since))):
            if time.monotonic() > deadline or self.state() != "running":
                return False
            time.sleep(0.5)
        return True

    def write_kubeconfig(self) -> None:
        """Write its kubeconfig, where it is another than the file has: ports change."""
        text = self._run(self.kind, "get", "kubeconfig", f"--name={self.name}")
        file = self.kubeconfig
        if file.exists() and file.read_text() == text:
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        part = file.with_suffix(f".{os.getpid()}")
        part.touch(mode=0o600)
        part.write_text(text)
        part.rename(file)

    def _mended(self, state: str) -> bool:
        try:
            if state != "running":
                print(f"cluster {self.name}: its node is {state}, started again", flush=True)
                self.start()
                return True
            print(f"cluster {self.name}: runs already", flush=True)
            self.write_kubeconfig()  # which fails where whoever made it was stopped at it
            self._have_network()
        except ClusterError:
            return False
        return self.wait_until_whole()

    def _have_network(self) -> None:
        """Give pods a network, which our image brings none of: one node needs but a bridge."""
        if not self.built():
            return
        file = "/etc/cni/net.d/10-bridge.conflist"
        self.daemon.docker(
            "exec", "-i", self.node, "sh", "-c", f"cat > {file}.new && mv {file}.new {file}",
            stdin=_NETWORK.read_bytes(),
        )  # fmt: skip

    def _create(self, image: str | None) -> None:
        print(f"cluster {self.name}: creating", flush=True)
        version = self.daemon.docker("info", "--format={{.CgroupVersion}}").strip()
        config = configuration(self.name, image=image, control_groups=int(version or 2))
        self._run(
            self.kind, "create", "cluster", "--quiet", "--config=-",
            f"--kubeconfig={self.kubeconfig}.new", stdin=json.dumps(config).encode(),
        )  # fmt: skip
        Path(f"{self.kubeconfig}.new").unlink(missing_ok=True)
        self.write_kubeconfig()
        self._have_network()
        if not self.wait_until_whole():
            raise ClusterError(
                f"cluster {self.name} was made and is not ready after {_WHOLE_SECONDS} s:"
                f" see docker logs {self.node}, and make down to end it"
            )

    def _whole(self) -> bool:
        kubectl: list[str | Path] = [
            self.kubectl,
            f"--kubeconfig={self.kubeconfig}",
            "--request-timeout=5s",
        ]
        ready = ["wait", "--for=condition=Ready", "node", "--all", "--timeout=1s"]
        return succeeds([*kubectl, "get", "storageclass", "standard"], timeout_seconds=20) and (
            succeeds([*kubectl, *ready], timeout_seconds=20)
        )

    def _heard_since(self, start: datetime) -> bool:
        """Tell whether the node's kubelet has said since then that it lives."""
        try:
            renewed = self._run(
                self.kubectl, f"--kubeconfig={self.kubeconfig}", "--request-timeout=5s", "get",
                "lease", self.node, "--namespace=kube-node-lease",
                "--output=jsonpath={.spec.renewTime}",
            )  # fmt: skip
            return datetime.fromisoformat(renewed) > start
        except (ClusterError, ValueError):
            return False

    def _run(self, *command: str | Path, stdin: bytes | None = None) -> str:
        return run(command, environment=self.daemon.environment(), stdin=stdin)


def all_names(daemon: Daemon) -> list[str]:
    """Return the clusters of kind on this daemon, also those whose nodes do not run."""
    listed = daemon.docker(
        "container",
        "ls",
        "--all",
        f"--filter=label={_LABEL}",
        f'--format={{{{.Label "{_LABEL}"}}}}',
    )
    return sorted(set(listed.split()))


def delete(daemon: Daemon, cluster: str) -> None:
    """Remove a cluster with all that was in it."""
    nodes = daemon.docker(
        "container", "ls", "--all", "--quiet", f"--filter=label={_LABEL}={cluster}"
    )
    daemon.docker("container", "rm", "--force", "--volumes", *nodes.split())
    _kubeconfig(cluster).unlink(missing_ok=True)


def _kubeconfig(cluster: str) -> Path:
    return places.cache() / "clusters" / f"{cluster}.kubeconfig"
