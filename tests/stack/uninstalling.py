"""What an uninstallation finds in a cluster: its account, and the pods of operator and headend.

The stack has no nodes. Its controllers run Deployments and StatefulSets all the same; what a
kubelet would do with their pods is played: report them as ready, end them once they are deleted.
"""

import argparse
import io
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any, Self

import kubernetes
import pytest
import yaml
from tests.stack import places
from tests.stack.controlplane import ControlPlane
from tests.stack.identities import CHART_FILES, NAMESPACE
from tests.stack.processes import StackError

from derops_operator.uninstall import add_arguments, main

OPERATOR, HEADEND = "derops-operator", "derops-headend"
ACCOUNT = "derops-uninstall"
USER = f"system:serviceaccount:{NAMESPACE}:{ACCOUNT}"

_RBAC = "rbac.authorization.k8s.io"
UNINSTALL = "derops.io/uninstall"
_NODE = "played"
_LOOK_SECONDS = 0.05


def rules(name: str) -> list[dict[str, Any]]:
    """Return one of the chart's files with rules."""
    found: list[dict[str, Any]] = yaml.safe_load((CHART_FILES / name).read_text(encoding="utf-8"))
    return found


def account(control_plane: ControlPlane, name: str = ACCOUNT, *, in_namespace: bool = True) -> str:
    """Return a kubeconfig of an account with the chart's rules and no more.

    Args:
        control_plane: Where.
        name: Of the account.
        in_namespace: Whether it gets the rules for the namespace of derops, too.
    """
    metadata = {"name": name, "namespace": NAMESPACE}
    subjects = [{"kind": "ServiceAccount", **metadata}]
    control_plane.apply(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata},
        *_role("ClusterRole", {"name": name}, "uninstall-rules.yaml", subjects),
        *_role("Role", metadata, "uninstall-namespace-rules.yaml", subjects) * in_namespace,
    )
    return control_plane.service_account_kubeconfig(NAMESPACE, name)


def _role(
    kind: str, metadata: dict[str, str], file: str, subjects: Sequence[dict[str, str]]
) -> list[dict[str, Any]]:
    api = f"{_RBAC}/v1"
    return [
        {"apiVersion": api, "kind": kind, "metadata": metadata, "rules": rules(file)},
        {
            "apiVersion": api,
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": _RBAC, "kind": kind, "name": metadata["name"]},
            "subjects": list(subjects),
        },
    ]


def documented_commands(heading: str) -> list[str]:
    """Return the command blocks below a heading of the page, as a person copies them."""
    page = (places.REPOSITORY / "docs" / "how-to" / "uninstall.md").read_text(encoding="utf-8")
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"```sh\n(.*?)```", section, re.DOTALL)


def type_commands(kubectl: str, kubeconfig: str, commands: str) -> str:
    """Run commands in a shell, as a person would; return what they printed.

    Raises:
        StackError: The last one failed; the message has what it said.
    """
    path = f"{Path(kubectl).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", commands],
        env={"PATH": path, "KUBECONFIG": kubeconfig, "HOME": "/nonexistent"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(f"exit code {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def start_uninstall(kubeconfig: str, *options: str) -> "subprocess.Popen[str]":
    """Start ``derops-operator uninstall`` as the pod of the Job would."""
    return subprocess.Popen(
        [str(Path(sys.executable).parent / "derops-operator"), "uninstall", *options],
        env={"KUBECONFIG": kubeconfig, "DEROPS_OPERATOR_NAMESPACE": NAMESPACE},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def uninstall(kubeconfig: str, *options: str) -> tuple[int, str]:
    """Do what ``derops-operator uninstall`` does; return its exit code and what it printed."""
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as environment, redirect_stdout(output):
        environment.setenv("KUBECONFIG", kubeconfig)
        code = main(parser.parse_args([*options, f"--namespace={NAMESPACE}"]))
    return code, output.getvalue()


class Pods:
    """Deployment of the operator and StatefulSet of the headend, with a kubelet that is played.

    Args:
        control_plane: Where.
        start: Starts the operator; called from a thread.
        stop: Ends it, when its pod is deleted; may be set to something else later.
    """

    def __init__(
        self,
        control_plane: ControlPlane,
        start: Callable[[], object] = lambda: None,
        stop: Callable[[], object] = lambda: None,
    ) -> None:
        self._control_plane = control_plane
        self._start = start
        self.stop = stop
        self._client = kubernetes.config.new_client_from_config(control_plane.kubeconfig)
        self._core = kubernetes.client.CoreV1Api(self._client)
        self._known: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._play, name="kubelet")

    def __enter__(self) -> Self:
        self._thread.start()
        self.install()
        return self

    def install(self) -> None:
        """Have both as an installation would, whatever became of them, and wait until they run."""
        items = [
            {"apiVersion": "v1", "kind": "Node", "metadata": {"name": _NODE}},
            _workload("Deployment", OPERATOR, "operator"),
            _workload("StatefulSet", HEADEND, "headend", serviceName=HEADEND),
        ]
        manifests = json.dumps({"apiVersion": "v1", "kind": "List", "items": items})
        apply = ("apply", "--server-side", "--force-conflicts", "-f", "-")
        self._control_plane.kubectl(*apply, stdin=manifests)
        self.wait_ready()

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._client.close()

    def wait_ready(self) -> None:
        """Wait until both are."""
        for name in (f"deployment/{OPERATOR}", f"statefulset/{HEADEND}"):
            self._control_plane.kubectl(
                "wait", name, "-n", NAMESPACE, "--for=jsonpath={.status.readyReplicas}=1",
                "--timeout=60s",
            )  # fmt: skip

    def scale(self, replicas: int) -> None:
        """Have so many operators, as an installation would."""
        self._control_plane.kubectl(
            "scale", f"deployment/{OPERATOR}", "-n", NAMESPACE, f"--replicas={replicas}"
        )

    def end_operator(self) -> None:
        """Have no operator, and wait until its pod is gone."""
        self.scale(0)
        self._control_plane.kubectl(
            "wait", "pods", "-l", "app.kubernetes.io/component=operator", "-n", NAMESPACE,
            "--for=delete", "--timeout=60s",
        )  # fmt: skip

    def replicas(self) -> int:
        """Return how many operators are wanted."""
        return int(
            self._control_plane.kubectl(
                "get", f"deployment/{OPERATOR}", "-n", NAMESPACE, "-o", "jsonpath={.spec.replicas}"
            )
        )

    def _play(self) -> None:
        while not self._ending.wait(_LOOK_SECONDS):
            for pod in self._core.list_namespaced_pod(NAMESPACE).items:
                try:
                    self._attend_to(pod)
                except kubernetes.client.exceptions.NotFoundException:
                    self._known.discard(pod.metadata.uid)

    def _attend_to(self, pod: Any) -> None:
        metadata = pod.metadata
        is_operator = metadata.name.startswith(OPERATOR)
        if metadata.deletion_timestamp is not None:
            if is_operator and metadata.uid in self._known:
                self.stop()
            self._known.discard(metadata.uid)
            self._core.delete_namespaced_pod(metadata.name, NAMESPACE, grace_period_seconds=0)
            return
        if metadata.uid not in self._known:
            if is_operator:
                self._start()
            self._known.add(metadata.uid)
        # Also again: nobody renews the played node, and what watches nodes calls its pods unready.
        if not _is_ready(pod):
            self._core.patch_namespaced_pod_status(metadata.name, NAMESPACE, _READY)


def _is_ready(pod: Any) -> bool:
    conditions = pod.status.conditions or []
    return any(each.type == "Ready" and each.status == "True" for each in conditions)


_READY = {
    "status": {
        "phase": "Running",
        "conditions": [{"type": kind, "status": "True"} for kind in ("Ready", "ContainersReady")],
    }
}


def _workload(kind: str, name: str, component: str, **spec: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/name": "derops", "app.kubernetes.io/component": component}
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": NAMESPACE, "annotations": {UNINSTALL: ""}},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "nodeName": _NODE,
                    "containers": [{"name": component, "image": "none"}],
                    # A node that never reports is soon taken for dead, and its pods deleted.
                    "tolerations": [{"operator": "Exists"}],
                },
            },
            **spec,
        },
    }
