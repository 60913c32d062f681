"""Builds the control plane binary once for each state of its sources, and keeps it in the cache."""

import hashlib
import os
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from tests.stack import places
from tests.stack.processes import StackError

SOURCES = places.REPOSITORY / "tests" / "controlplane"
KUBERNETES_VERSION = "v1.36.3"

_PROGRESS_SECONDS = 15


@dataclass(frozen=True, slots=True)
class Binaries:
    """The control plane's programs, as the beginning of a command line each."""

    directory: Path

    @property
    def controlplane(self) -> str:
        return str(self.directory / "controlplane")

    @property
    def kubectl(self) -> str:
        return str(self.directory / "kubectl")

    @property
    def certmanager_crds(self) -> Path:
        return self.directory / "cert-manager-crds"

    def envtest(self, program: str) -> str | None:
        """Return a prebuilt ``program`` where KUBEBUILDER_ASSETS names a directory that has it."""
        assets = os.environ.get("KUBEBUILDER_ASSETS")
        return shutil.which(program, path=assets) if assets else None


def binaries() -> Binaries:
    """Return the programs; build them first where the cache does not have this state."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise StackError("Go is not on PATH: it builds the control plane, see https://go.dev/dl/")
    directory = places.cache() / f"controlplane-{_fingerprint(go)}"
    if not directory.exists():
        with places.locked("controlplane"):
            if not directory.exists():  # else somebody built it while we waited for the lock
                _build(go, directory)
    return Binaries(directory)


def _fingerprint(go: str) -> str:
    digest = hashlib.sha256(_run([go, "env", "GOVERSION"]).encode())
    for file in sorted([*SOURCES.glob("*.go"), *SOURCES.glob("go.*")]):
        digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _build(go: str, directory: Path) -> None:
    scratch = directory.with_suffix(".part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    with _Progress():
        _run([go, "build", *_flags(), "-o", str(scratch / "controlplane"), "."], CGO_ENABLED="0")
    (scratch / "kubectl").symlink_to("controlplane")
    module = _run([go, "list", "-m", "-f", "{{.Dir}}", "github.com/cert-manager/cert-manager"])
    crds = scratch / "cert-manager-crds"
    crds.mkdir()
    for file in sorted((Path(module.strip()) / "deploy" / "crds").glob("*.yaml")):
        (crds / file.name).write_bytes(file.read_bytes())
    scratch.rename(directory)


def _flags() -> list[str]:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    version = "k8s.io/component-base/version"  # kubectl cannot parse the version without these
    facts = {
        "gitVersion": KUBERNETES_VERSION,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "unknown",
        "gitTreeState": "clean",
    }
    stamps = " ".join(f"-X {version}.{name}={value}" for name, value in facts.items())
    return ["-trimpath", "-buildvcs=false", f"-ldflags=-s -w {stamps}"]


def _run(command: list[str], **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=SOURCES,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(f"{' '.join(command[:3])} failed\n{done.stderr[-4000:]}")
    return done.stdout


class _Progress:
    """Says at intervals what takes so long."""

    def __enter__(self) -> None:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._tell)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _tell(self) -> None:
        started = time.monotonic()
        while True:
            elapsed = int(time.monotonic() - started)
            print(
                f"building the control plane (Kubernetes {KUBERNETES_VERSION}, etcd, cert-manager)"
                " once for this machine: usually 8 minutes on two cores,"
                f" elapsed {elapsed // 60}:{elapsed % 60:02}",
                flush=True,
            )
            if self._done.wait(_PROGRESS_SECONDS):
                return
