"""Reads an image from a docker-archive, without a tool that runs images."""

import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, directory or link of an image."""

    path: str
    """From the root, without a slash at the beginning."""
    info: tarfile.TarInfo
    content: bytes
    """Of a file that was asked for; else empty."""


@dataclass(frozen=True, slots=True)
class Image:
    """What an archive holds."""

    digest: str
    """``sha256:…`` of the configuration, which names each layer: what tools call the image's ID."""
    config: dict[str, Any]
    entries: dict[str, Entry]


def read_image(archive: Path, *suffixes: str) -> Image:
    """Return the image in ``archive``, with the content of files that end with a suffix."""
    with tarfile.open(archive) as outer:
        manifest = json.loads(_content(outer, "manifest.json"))[0]
        config = manifest["Config"]
        entries: dict[str, Entry] = {}
        for layer in manifest["Layers"]:
            with _layer(outer, layer) as inner:
                for info in inner:
                    path = info.name.removeprefix("./").strip("/")
                    wanted = info.isfile() and path.endswith(suffixes)
                    file = inner.extractfile(info) if wanted else None
                    entries[path] = Entry(path, info, file.read() if file else b"")
        digest = Path(config).name.removesuffix(".json")
        return Image(f"sha256:{digest}", json.loads(_content(outer, config)), entries)


def image_digest(archive: Path) -> str:
    """Return the digest of the image in ``archive`` alone, which is quick."""
    with tarfile.open(archive) as outer:
        config = json.loads(_content(outer, "manifest.json"))[0]["Config"]
    return f"sha256:{Path(config).name.removesuffix('.json')}"


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ValueError(f"{name} is no file")
    return file.read()


@contextmanager
def _layer(outer: tarfile.TarFile, name: str) -> Iterator[tarfile.TarFile]:
    with tarfile.open(fileobj=outer.extractfile(name)) as inner:
        yield inner
