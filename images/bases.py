"""The base of the images: an image of a registry, or made of Debian's packages where none is."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from images import debian
from images.builders import Build, Builder, own_arch
from images.commands import ImagesError

PYTHON_MINOR = "3.13"
"""Of the usual base, and of Debian's packages alike."""
USUAL = "docker.io/library/python:3.13-slim-trixie"

_PACKAGES = ("libpython3-stdlib", "libstdc++6", "python3-minimal")
_HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Base:
    """What the images of one architecture stand on."""

    tag: str
    """What the builder knows it by."""
    name: str
    """Where it comes from, for people."""


class Bases:
    """Finds the base for each architecture, once, and takes from it what no program needs."""

    def __init__(self, builder: Builder, name: str, python_minor: str, scratch: Path) -> None:
        self._builder = builder
        self._name = name
        self._python_minor = python_minor
        self._context = scratch / "base"
        self._origins: dict[str, Base] = {}
        self._slimmed: dict[str, Base] = {}

    def find(self, arch: str) -> Base:
        """Return the base for an architecture."""
        if arch not in self._slimmed:
            self._slimmed[arch] = self._slim(arch)
        return self._slimmed[arch]

    def _slim(self, arch: str) -> Base:
        origin, builder_origin = self._origin(arch), self._origin(own_arch())
        self._context.mkdir(exist_ok=True)
        shutil.copyfile(_HERE / "slim.py", self._context / "slim.py")
        tag = f"localhost/derops-base:{arch}"
        self._builder.build(
            Build(
                context=self._context,
                dockerfile=_HERE / "base.Dockerfile",
                tag=tag,
                arch=arch,
                epoch=0,
                arguments={
                    "BASE": origin.tag,
                    "BUILDER": builder_origin.tag,
                    "BUILDPLATFORM": f"linux/{own_arch()}",
                    "PYTHON_MINOR": self._python_minor,
                },
            )
        )
        return Base(tag, origin.name)

    def _origin(self, arch: str) -> Base:
        if arch not in self._origins:
            self._origins[arch] = self._pull(arch) or self._package(arch)
        return self._origins[arch]

    def _pull(self, arch: str) -> Base | None:
        name = self._name or USUAL
        try:
            self._builder.pull(name, arch)
        except ImagesError as error:
            if self._name:
                raise ImagesError(f"base image {name} ({arch}): {error}") from None
            return None
        # A name holds one architecture at a time: the next pull would take it away.
        tag = f"localhost/derops-origin:{hashlib.sha256(name.encode()).hexdigest()[:12]}-{arch}"
        self._builder.tag(name, tag)
        return Base(tag, name)

    def _package(self, arch: str) -> Base:
        if self._python_minor != PYTHON_MINOR:
            raise ImagesError(
                f"{USUAL} cannot be reached, and Debian {debian.SUITE} has Python"
                f" {PYTHON_MINOR}, not BASE_PYTHON={self._python_minor}"
            )
        print(f"{USUAL} ({arch}) cannot be reached: Debian's packages take its place", flush=True)
        archive = debian.file_system(_PACKAGES, arch)
        tag = f"localhost/derops-{archive.parent.name}"
        if not self._builder.has(tag):
            dockerfile = self._context.with_suffix(".Dockerfile")
            dockerfile.write_text("FROM scratch\nADD rootfs.tar /\nENV PATH=/usr/bin:/bin\n")
            self._builder.build(
                Build(
                    context=archive.parent,
                    dockerfile=dockerfile,
                    tag=tag,
                    arch=arch,
                    epoch=0,
                    arguments={},
                )
            )
        return Base(tag, f"debian:{debian.SUITE} (packages)")
