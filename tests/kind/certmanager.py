"""cert-manager in a cluster: found there, or installed with its own chart."""

import json
import time
from dataclasses import dataclass
from pathlib import Path

from tests.kind.errors import ClusterError
from tests.kind.nodeimage import CERT_MANAGER_IMAGES, CERT_MANAGER_VERSION
from tests.kind.shell import run, succeeds
from tests.stack import build

NAMESPACE = "cert-manager"

_INSTALL_SECONDS = 180
_ANSWER_SECONDS = 120
_PROBE = {
    "apiVersion": "cert-manager.io/v1",
    "kind": "Issuer",
    "metadata": {"name": "derops-probe", "namespace": "default"},
    "spec": {"selfSigned": {}},
}


@dataclass(frozen=True, slots=True)
class Tools:
    """How a cluster is spoken to."""

    kubectl: Path
    helm: Path
    kubeconfig: Path

    def kubectl_command(self, *arguments: str) -> list[str | Path]:
        """Return a command line of kubectl."""
        return [self.kubectl, f"--kubeconfig={self.kubeconfig}", *arguments]


def values(*, own_images: bool) -> dict[str, object]:
    """Return the values of cert-manager's chart.

    Its own approver leaves alone what ClusterIssuers sign: derops-agent is the operator's.
    """
    result: dict[str, object] = {
        "crds": {"enabled": True},
        "startupapicheck": {"enabled": False},
        "approveSignerNames": ["issuers.cert-manager.io/*"],
    }
    if not own_images:
        image = {"image": {"tag": CERT_MANAGER_VERSION}}  # the module's chart has no version
        return result | image | {"webhook": image, "cainjector": image}
    images = {
        name: {"image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}
        for name, image in CERT_MANAGER_IMAGES.items()
        for repository, tag in [image.rsplit(":", 1)]
    }
    return (
        result
        | {"prometheus": {"enabled": False}}  # what we compile has no metrics
        | images["controller"]
        | {name: images[name] for name in ("webhook", "cainjector")}
    )


def ensure(tools: Tools, *, own_images: bool) -> None:
    """Have cert-manager answer in the cluster.

    Raises:
        ClusterError: It cannot be installed, or its webhook does not answer.
    """
    crd = tools.kubectl_command("get", "crd", "certificates.cert-manager.io")
    pods = tools.kubectl_command("get", "deployment", "-A", "-l=app=cert-manager", "-o=name")
    if succeeds(crd) and run(pods).strip():
        print("cert-manager: is in the cluster", flush=True)
    else:
        print(f"cert-manager: installing {CERT_MANAGER_VERSION} with its chart", flush=True)
        _install(tools, own_images=own_images)
    deadline = time.monotonic() + _ANSWER_SECONDS
    while not _answers(tools):
        if time.monotonic() > deadline:
            raise ClusterError(
                f"cert-manager's webhook does not answer after {_ANSWER_SECONDS} s:"
                f" see kubectl get pods -n {NAMESPACE}"
            )
        time.sleep(0.5)


def _install(tools: Tools, *, own_images: bool) -> None:
    # Helm refuses to go on where one was killed that installed.
    killed = f"owner=helm,name={NAMESPACE},status=pending-install"
    run(
        tools.kubectl_command(
            "delete", "secret", f"--namespace={NAMESPACE}", f"--selector={killed}"
        )
    )
    run(
        [
            tools.helm, f"--kubeconfig={tools.kubeconfig}", "upgrade", "--install", NAMESPACE,
            build.binaries().certmanager_chart, f"--namespace={NAMESPACE}", "--create-namespace",
            "--values=-", "--wait", f"--timeout={_INSTALL_SECONDS}s",
        ],
        stdin=json.dumps(values(own_images=own_images)).encode(),
    )  # fmt: skip


def _answers(tools: Tools) -> bool:
    """Tell whether its webhook answers: it is ready long before it has its CA's certificate."""
    command = tools.kubectl_command("apply", "--dry-run=server", "-f", "-")
    try:
        run(command, stdin=json.dumps(_PROBE).encode(), timeout_seconds=30)
    except ClusterError:
        return False
    return True
