"""Images in the node of a cluster: loaded where the node has not just these already."""

import hashlib
import json
import platform
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tests.kind.cluster import Cluster
from tests.kind.shell import run
from tests.stack import places

IMAGES = places.BUILD / "images"

_MARKS = "/var/lib/derops-images"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}


@dataclass(frozen=True, slots=True)
class Archive:
    """A file as ``docker save`` writes it."""

    file: Path
    digest: str
    """Of its table of contents, which names the digests of all that is in it."""
    names: tuple[str, ...]


def read(file: Path) -> Archive:
    """Return what is in an archive of images."""
    with tarfile.open(file) as archive:
        manifest = archive.extractfile("manifest.json")
        text = manifest.read() if manifest else b"[]"
    names = [name for image in json.loads(text) for name in image.get("RepoTags") or []]
    return Archive(file, hashlib.sha256(text).hexdigest(), tuple(names))


def for_machine(files: Iterable[Path], machine: str) -> list[Path]:
    """Return the archives for a machine's architecture: the ends of their names tell."""
    wanted = _ARCHITECTURES.get(machine, machine)
    others = set(_ARCHITECTURES.values()) - {wanted}
    return sorted(each for each in files if each.stem.rsplit("-", 1)[-1] not in others)


def load(cluster: Cluster, directory: Path = IMAGES) -> None:
    """Load all archives that ``make images`` wrote for this machine."""
    files = for_machine(directory.glob("*.tar"), platform.machine())
    if not files:
        print(f"images: none in {directory}; make images builds them", flush=True)
    for file in files:
        _load(cluster, read(file))


def _load(cluster: Cluster, archive: Archive) -> None:
    mark = f"{_MARKS}/{archive.file.stem}"
    said = " ".join(archive.names) or archive.file.name
    script = f"cat {mark} 2>/dev/null; ctr -n k8s.io images ls -q"
    there = cluster.daemon.docker("exec", cluster.node, "sh", "-c", script).split()
    if archive.digest in there and all(full(name) in there for name in archive.names):
        print(f"image {said}: loaded already", flush=True)
        return
    print(f"image {said}: loading", flush=True)
    run(
        [cluster.kind, "load", "image-archive", "--quiet", f"--name={cluster.name}", archive.file],
        environment=cluster.daemon.environment(),
    )
    script = f"mkdir -p {_MARKS} && echo {archive.digest} > {mark}"
    cluster.daemon.docker("exec", cluster.node, "sh", "-c", script)


def full(name: str) -> str:
    """Return the name as containerd knows it."""
    first = name.split("/", 1)[0]
    if "/" not in name:
        return f"docker.io/library/{name}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"
