"""Programs in Go that a cluster needs: found on PATH, or built once and kept in the cache."""

import shutil
import subprocess
from pathlib import Path

from tests.kind.errors import ClusterError
from tests.stack import build

SOURCES = Path(__file__).parent / "programs"

KIND_VERSION = "v0.33.0"

_HELM = "helm.sh/helm/v3"
_PACKAGES = {
    "coredns": ".",
    "pause": ".",
    "local-path-provisioner": "github.com/rancher/local-path-provisioner",
    "kind": "sigs.k8s.io/kind",
    "helm-unittest": "github.com/helm-unittest/helm-unittest/cmd/helm-unittest",
}


def built(name: str) -> Path:
    """Return a program of ours or of others that we compile."""
    if name == "helm":
        return build.program("helm", build.SOURCES, f"{_HELM}/cmd/helm", _helm_stamps())
    stamps = _unittest_stamps() if name == "helm-unittest" else {}
    return build.program(name, SOURCES / name, _PACKAGES[name], stamps)


def find(name: str) -> Path:
    """Return a tool: the one on PATH, else one that is built here."""
    found = shutil.which(name)
    return Path(found) if found else built(name)


def have(name: str) -> Path:
    """Return a tool and tell which it is."""
    program = find(name)
    print(f"{name}: {program}", flush=True)
    return program


def kind_files() -> Path:
    """Return what kind puts into the root of its nodes: scripts, units, containerd's settings."""
    command = [build.go(), "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kind"]
    done = subprocess.run(
        command, cwd=SOURCES / "kind", capture_output=True, text=True, check=False
    )
    files = Path(done.stdout.strip()) / "images" / "base" / "files"
    if not files.is_dir():
        raise ClusterError(f"kind's module has no {files}\n{done.stderr[-1000:]}")
    return files


def _helm_stamps() -> dict[str, str]:
    """Return which Kubernetes helm takes for the newest: its own builds say 1.20."""
    return {
        f"{_HELM}/pkg/{package}.k8sVersion{part}": value
        for package in ("chartutil", "lint/rules")
        for part, value in _kubernetes().items()
    }


def _unittest_stamps() -> dict[str, str]:
    return {f"{_HELM}/pkg/chartutil.k8sVersion{p}": value for p, value in _kubernetes().items()}


def _kubernetes() -> dict[str, str]:
    major, minor, _ = build.KUBERNETES_VERSION.removeprefix("v").split(".")
    return {"Major": major, "Minor": minor}
