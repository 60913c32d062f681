"""A docker-archive of few files, for tests that need no image that runs."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

CONFIG: dict[str, Any] = {
    "created": "2026-01-02T03:04:05Z",
    "architecture": "amd64",
    "config": {"User": "65532:65532", "Env": ["PATH=/usr/bin"]},
}


def file(path: str, *, mode: int = 0o644, user_id: int = 0, kind: bytes = tarfile.REGTYPE) -> Any:
    """Return the header of a file."""
    info = tarfile.TarInfo(path)
    info.mode, info.uid, info.type = mode, user_id, kind
    return info


def write_archive(
    target: Path,
    files: Sequence[tarfile.TarInfo],
    contents: Mapping[str, str] | None = None,
    config: Mapping[str, Any] = CONFIG,
) -> Path:
    """Write an image of one layer with these files, all of them empty but those with contents."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as inner:
        for info in files:
            inner.addfile(info)
        for path, text in (contents or {}).items():
            _add(inner, path, text.encode())
    configuration = json.dumps(config).encode()
    name = hashlib.sha256(configuration).hexdigest()
    with tarfile.open(target, "w") as outer:
        _add(outer, f"{name}.json", configuration)
        _add(outer, "layer.tar", layer.getvalue())
        manifest = [{"Config": f"{name}.json", "Layers": ["layer.tar"]}]
        _add(outer, "manifest.json", json.dumps(manifest).encode())
    return target


def _add(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    info = tarfile.TarInfo(path)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))
