"""Secrets as files, changed as a kubelet changes them: all of a Secret's files in one step."""

import itertools
import shutil
from collections.abc import Mapping
from pathlib import Path

_versions = itertools.count()


def write_mount(directory: Path, files: Mapping[str, bytes]) -> bool:
    """Make ``directory`` show ``files``; return whether that changed anything.

    As in a pod, each file is a link through ``..data``, and that link is replaced atomically, so
    that a reader sees a certificate with its own key and never with its predecessor's.
    """
    current = directory / "..data"
    if current.exists() and _read(current) == dict(files):
        return False
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = directory / f"..{next(_versions)}"
    fresh.mkdir(mode=0o700)
    for name, content in files.items():
        (fresh / name).touch(mode=0o600)
        (fresh / name).write_bytes(content)
    old = current.resolve() if current.exists() else None
    link = directory / "..data_tmp"
    link.symlink_to(fresh.name)
    link.replace(current)
    for name in files:
        if not (directory / name).is_symlink():
            (directory / name).symlink_to(f"..data/{name}")
    if old is not None:
        shutil.rmtree(old)
    return True


def _read(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}
