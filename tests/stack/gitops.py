"""The resource definitions of Argo CD, Flux and the Gateway API, from their own Go modules.

None of them runs here: their definitions make an API server judge our manifests as theirs would.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.stack import places
from tests.stack.processes import StackError

_BASES = "config/crd/bases"
_FILES = [
    ("github.com/argoproj/argo-cd/v3@v3.4.13", "manifests/crds/application-crd.yaml"),
    ("github.com/argoproj/argo-cd/v3@v3.4.13", "manifests/crds/appproject-crd.yaml"),
    (
        "github.com/fluxcd/source-controller@v1.9.6",
        f"{_BASES}/source.toolkit.fluxcd.io_gitrepositories.yaml",
    ),
    (
        "github.com/fluxcd/kustomize-controller@v1.9.6",
        f"{_BASES}/kustomize.toolkit.fluxcd.io_kustomizations.yaml",
    ),
]
_HELM_CONTROLLER = "github.com/fluxcd/helm-controller/api@v1.6.5"
_GENERATOR = "sigs.k8s.io/controller-tools/cmd/controller-gen@v0.20.1"
"""Makes the definition of HelmRelease from its types: the module of the types has no other form."""

_VERSION = "1"
"""Changes with what is above."""

_GATEWAY_API = "sigs.k8s.io/gateway-api@v1.4.1"
_GATEWAY_KINDS = ("httproutes", "backendtlspolicies")


def definitions() -> Path:
    """Return a directory with the definitions, fetched once into the cache."""
    directory = places.cache() / f"gitops-definitions-{_VERSION}"
    if not directory.exists():
        with places.locked("gitops-definitions"):
            if not directory.exists():  # else somebody did it while we waited for the lock
                scratch = directory.with_suffix(".part")
                shutil.rmtree(scratch, ignore_errors=True)
                scratch.mkdir()
                _fetch(scratch)
                scratch.rename(directory)
    return directory


def gateway_api() -> list[Path]:
    """Return the definitions of HTTPRoute and BackendTLSPolicy, fetched once by Go."""
    folder = _module(_GATEWAY_API) / "config" / "crd" / "standard"
    return [folder / f"gateway.networking.k8s.io_{kind}.yaml" for kind in _GATEWAY_KINDS]


def _fetch(scratch: Path) -> None:
    print("fetching the definitions of Argo CD and Flux, once; about two minutes", flush=True)
    sources = {module: _module(module) for module, _ in _FILES}
    for module, file in _FILES:
        shutil.copyfile(sources[module] / file, scratch / Path(file).name)
    work = scratch / "helm-controller"
    shutil.copytree(_module(_HELM_CONTROLLER), work, copy_function=shutil.copyfile)
    for folder in [work, *(each for each in work.rglob("*") if each.is_dir())]:
        folder.chmod(0o755)  # a module's folders are read-only
    _go("install", _GENERATOR, cwd=work, GOBIN=str(scratch))
    generate = [str(scratch / "controller-gen"), "crd", "paths=./v2", f"output:crd:dir={scratch}"]
    _run(generate, work)
    (scratch / "controller-gen").unlink()
    shutil.rmtree(work)


def _module(module: str) -> Path:
    places.skip_without_parts()
    answer = json.loads(_go("mod", "download", "-json", module, cwd=Path("/")))
    return Path(answer["Dir"])


def _go(*arguments: str, cwd: Path, **environment: str) -> str:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        raise StackError("Go is not on PATH: it fetches definitions, see https://go.dev/dl/")
    return _run([go, *arguments], cwd, **environment)


def _run(command: list[str], cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    if done.returncode:
        raise StackError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
