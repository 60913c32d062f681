"""The cluster that ``make cluster`` made or found: kubectl, helm, and the power of its node."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from tests.stack import kubeconfig, places
from tests.stack.processes import StackError
from tests.waiting import eventually

FILE = places.BUILD / "cluster.json"
NODE_SECONDS = 180


class HelmError(StackError):
    """helm failed; the message has what it said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster with nodes, whose administrator we are."""

    kubeconfig: str
    kubectl_program: str
    helm_program: str
    kind: str | None
    """Name of the kind cluster; None = it is not ours to switch off."""

    docker_host: str | None
    user: tuple[str, ...] = ()
    """Arguments of kubectl that make it speak for somebody else."""

    @classmethod
    def find(cls) -> Self:
        """Return the cluster of ``build/cluster.json``.

        Raises:
            StackError: ``make cluster`` was not run in this clone.
        """
        if not FILE.exists():
            raise StackError(f"there is no {FILE}: run 'make cluster' first")
        said = json.loads(FILE.read_text(encoding="utf-8"))
        return cls(
            kubeconfig=said["kubeconfig"],
            kubectl_program=said["kubectl"],
            helm_program=said["helm"],
            kind=said["kind"],
            docker_host=said["dockerHost"],
        )

    def acting_as(self, user: str, *groups: str) -> Self:
        """Return the same cluster in the eyes of somebody else."""
        arguments = [f"--as={user}", *(f"--as-group={group}" for group in groups)]
        return type(self)(
            kubeconfig=self.kubeconfig,
            kubectl_program=self.kubectl_program,
            helm_program=self.helm_program,
            kind=self.kind,
            docker_host=self.docker_host,
            user=tuple(arguments),
        )

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it printed.

        Raises:
            StackError: kubectl failed; the message has what it said.
        """
        return kubeconfig.kubectl(
            self.kubectl_program, self.kubeconfig, *self.user, *arguments, stdin=stdin
        )

    def get(self, *arguments: str) -> Any:
        """Return what ``kubectl get`` says, parsed."""
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def items(self, *arguments: str) -> list[dict[str, Any]]:
        """Return the objects of a list."""
        found: list[dict[str, Any]] = self.get(*arguments)["items"]
        return found

    def apply(self, *manifests: dict[str, Any]) -> None:
        """Apply manifests on the server's side, as an installer would."""
        items = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.kubectl(
            "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(items)
        )

    def run_in(self, pod: str, namespace: str, *command: str, container: str = "") -> str:
        """Run a command in a pod and return what it printed."""
        where = ["-n", namespace, *(["-c", container] if container else [])]
        return self.kubectl("exec", pod, *where, "--", *command)

    @contextmanager
    def forwarded(self, service: str, namespace: str, port: int) -> Iterator[int]:
        """Yield a port of this machine that leads to a port of a Service, as long as it is used.

        Raises:
            StackError: kubectl does not forward; the message has what it said.
        """
        command = ["port-forward", f"service/{service}", f":{port}", "-n", namespace]
        with subprocess.Popen(
            [self.kubectl_program, *command],
            env=os.environ | {"KUBECONFIG": self.kubeconfig},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        ) as forwarding:  # fmt: skip
            try:
                said = forwarding.stdout.readline() if forwarding.stdout else ""
                found = re.search(r"127\.0\.0\.1:(\d+)", said)
                if found is None:
                    raise StackError(f"kubectl {' '.join(command)}: {said}")
                yield int(found[1])
            finally:
                forwarding.terminate()

    def refusal(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl, which must fail, and return what it said."""
        try:
            done = self.kubectl(*arguments, stdin=stdin)
        except StackError as refused:
            return str(refused)
        raise AssertionError(f"kubectl {' '.join(arguments)} was not refused: {done}")

    def may(self, verb: str, thing: str, namespace: str) -> bool:
        """Return whether RBAC allows it."""
        try:
            self.kubectl("auth", "can-i", verb, thing, "-n", namespace, "--quiet")
        except StackError:
            return False
        return True

    def helm(self, *arguments: str) -> str:
        """Run helm and return what it printed.

        Raises:
            HelmError: helm failed.
        """
        return _run(
            [self.helm_program, *arguments], {"KUBECONFIG": self.kubeconfig}, failure=HelmError
        )

    def shell(self, script: str) -> str:
        """Run what a page tells to type, in which kubectl means this cluster."""
        path = f"{Path(self.kubectl_program).parent}:{os.environ['PATH']}"
        return _run(["bash", "-euc", script], {"KUBECONFIG": self.kubeconfig, "PATH": path})

    @property
    def node(self) -> str:
        """The container that is the node of the kind cluster."""
        return f"{self.kind}-control-plane"

    def kill_node(self) -> None:
        """End the node with all in it, as a power cut would."""
        self._docker("kill", self.node)

    def start_node(self) -> None:
        """Switch the node on and wait until its API server answers."""
        self._docker("start", self.node)
        # Docker may give the API server another port of the host.
        address = self._docker("port", self.node, "6443/tcp").split()[0]
        self.kubectl("config", "set-cluster", f"kind-{self.kind}", f"--server=https://{address}")
        eventually(self._answers, "the API server after the node's start", NODE_SECONDS)

    def run_in_node(self, *command: str) -> str:
        """Run a command in the node and return what it printed."""
        return self._docker("exec", self.node, *command)

    def _answers(self) -> bool:
        try:
            return self.kubectl("get", "--raw", "/readyz", "--request-timeout=5s") == "ok"
        except StackError:
            return False

    def _docker(self, *arguments: str) -> str:
        environment = {"DOCKER_HOST": self.docker_host} if self.docker_host else {}
        return _run(["docker", *arguments], environment)


def _run(
    command: Sequence[str], environment: dict[str, str], *, failure: type[StackError] = StackError
) -> str:
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        words = f"{done.stdout.strip()}\n{done.stderr.strip()}".strip()
        raise failure(f"{Path(command[0]).name} {' '.join(command[1:])}: {words}")
    return done.stdout
