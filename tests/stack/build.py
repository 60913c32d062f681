"""Builds programs in Go once for each state of their sources, and keeps them in the cache."""

import hashlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
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

    def __str__(self) -> str:
        return str(self.directory)

    @property
    def controlplane(self) -> str:
        return str(self.directory / "controlplane")

    @property
    def kubectl(self) -> str:
        return str(self.directory / "kubectl")

    @property
    def certmanager_crds(self) -> Path:
        return self.directory / "cert-manager-crds"

    @property
    def certmanager_chart(self) -> Path:
        return self.directory / "cert-manager-chart"

    def envtest(self, program: str) -> str | None:
        """Return a prebuilt ``program`` where KUBEBUILDER_ASSETS names a directory that has it."""
        assets = os.environ.get("KUBEBUILDER_ASSETS")
        return shutil.which(program, path=assets) if assets else None


def binaries() -> Binaries:
    """Return the control plane; build it first where the cache does not have this state."""
    return Binaries(_cached(SOURCES, _build_control_plane, SOURCES.name))


def program(
    name: str, sources: Path | None = None, package: str = ".", stamps: Mapping[str, str] = {}
) -> Path:
    """Return a program in Go; build it first if need be.

    Args:
        name: What it is called.
        sources: Where its module is, by default ``tests/<name>``.
        package: Which package of the module, or of one that the module needs, it is.
        stamps: Variables of its code, and what the linker shall put there.
    """
    sources = sources or places.REPOSITORY / "tests" / name

    def build(tool: str, scratch: Path) -> None:
        command = [tool, "build", *_flags(stamps), "-o", str(scratch / name), package]
        _run(command, sources, CGO_ENABLED="0")

    return _cached(sources, build, name) / name


def go() -> str:
    """Return the Go tool chain.

    Raises:
        StackError: There is none.
    """
    found = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if found is None:
        raise StackError("Go is not on PATH: it builds what tests need, see https://go.dev/dl/")
    return found


def _cached(sources: Path, build: Callable[[str, Path], None], name: str) -> Path:
    """Return the directory that ``build`` filled, once for each state of the sources."""
    tool = go()
    directory = places.cache() / f"{name}-{_fingerprint(tool, sources)}"
    if not directory.exists():
        with places.locked(name):
            if not directory.exists():  # else somebody built it while we waited for the lock
                scratch = directory.with_suffix(".part")
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir()
                build(tool, scratch)
                scratch.rename(directory)
    return directory


def _fingerprint(tool: str, sources: Path) -> str:
    digest = hashlib.sha256(_run([tool, "env", "GOVERSION"], sources).encode())
    for file in sorted([*sources.glob("*.go"), *sources.glob("go.*")]):
        digest.update(f"{file.name}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _build_control_plane(tool: str, scratch: Path) -> None:
    command = [tool, "build", *_flags(_version()), "-o", str(scratch / "controlplane"), "."]
    with _Progress():
        _run(command, SOURCES, CGO_ENABLED="0")
    (scratch / "kubectl").symlink_to("controlplane")
    module = "github.com/cert-manager/cert-manager"
    found = _run([tool, "list", "-m", "-f", "{{.Dir}}", module], SOURCES)
    deploy = Path(found.strip()) / "deploy"
    _copy(deploy / "crds", scratch / "cert-manager-crds")
    _copy(deploy / "charts" / "cert-manager", scratch / "cert-manager-chart")


def _copy(source: Path, target: Path) -> None:
    """Copy a folder without its modes: those of a Go module are read-only."""
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())


def _flags(stamps: Mapping[str, str]) -> list[str]:
    """Return the same flags for all: Go compiles a package once for each set of them."""
    linker = " ".join(f"-X {name}={value}" for name, value in stamps.items())
    return ["-trimpath", "-buildvcs=false", f"-ldflags=-s -w {linker}"]


def _version() -> dict[str, str]:
    major, minor, _ = KUBERNETES_VERSION.removeprefix("v").split(".")
    version = "k8s.io/component-base/version"  # kubectl cannot parse the version without these
    facts = {
        "gitVersion": KUBERNETES_VERSION,
        "gitMajor": major,
        "gitMinor": minor,
        "gitCommit": "unknown",
        "gitTreeState": "clean",
    }
    return {f"{version}.{name}": value for name, value in facts.items()}


def _run(command: list[str], directory: Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=directory,
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
                f"building Kubernetes {KUBERNETES_VERSION}, etcd and cert-manager"
                " once for this machine: usually 8 minutes on two cores,"
                f" elapsed {elapsed // 60}:{elapsed % 60:02}",
                flush=True,
            )
            if self._done.wait(_PROGRESS_SECONDS):
                return
