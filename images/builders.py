"""The programs that make images of a Dockerfile: the one that this machine has."""

import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from images.commands import ImagesError, run

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}
_POLICY = '{"default": [{"type": "insecureAcceptAnything"}]}\n'


def own_arch() -> str:
    """Return the architecture of this machine, as images name it."""
    machine = platform.machine()
    if machine not in _MACHINES:
        raise ImagesError(f"no base image for machines of the kind {machine}")
    return _MACHINES[machine]


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """What to make of a folder with a Dockerfile."""

    context: Path
    dockerfile: Path
    tag: str
    arch: str
    arguments: Mapping[str, str]
    epoch: int
    """Time stamp of all files, in seconds since 1970."""


class Builder(Protocol):
    """One way to make images."""

    def __str__(self) -> str: ...

    def has(self, tag: str) -> bool:
        """Return whether an image is here already."""

    def pull(self, name: str, arch: str) -> None:
        """Fetch an image from its registry."""

    def tag(self, name: str, tag: str) -> None:
        """Give an image one more name."""

    def build(self, build: Build) -> None:
        """Make an image; no step of it reaches a network."""

    def save(self, tag: str, archive: Path) -> None:
        """Write an image into a docker-archive."""

    def tidy(self) -> None:
        """Remove what is left of earlier builds."""


class Buildah:
    """buildah, which needs no daemon; with a storage of its own."""

    def __init__(self, program: str, storage: Path) -> None:
        storage.mkdir(parents=True, exist_ok=True)
        policy = storage / "policy.json"
        policy.write_text(_POLICY)
        stores = ["--root", str(storage / "root"), "--runroot", str(storage / "run")]
        self._program = [program, *stores]
        self._policy = f"--signature-policy={policy}"

    def __str__(self) -> str:
        return f"{self._program[0]} (reproducible)"

    def has(self, tag: str) -> bool:
        return bool(self._run("images", "--quiet", "--filter", f"reference={tag}"))

    def pull(self, name: str, arch: str) -> None:
        self._run("pull", "--quiet", self._policy, f"--platform=linux/{arch}", name)

    def tag(self, name: str, tag: str) -> None:
        self._run("tag", name, tag)

    def build(self, build: Build) -> None:
        # chroot is the isolation that works for root, for users and in containers. It leaves the
        # network as it is, so that is taken away around it where we may.
        self._run(
            "bud", "--quiet", self._policy, "--isolation=chroot", "--pull-never", "--layers=false",
            f"--timestamp={build.epoch}", *_build_options(build), apart=["--net"],
        )  # fmt: skip

    def save(self, tag: str, archive: Path) -> None:
        name = tag.removeprefix("localhost/")
        # By its ID: of one that is named, the name goes into the archive too.
        image = self._run("images", "--quiet", "--no-trunc", tag).strip().removeprefix("sha256:")
        self._run("push", "--quiet", self._policy, image, f"docker-archive:{archive}:{name}")

    def tidy(self) -> None:
        self._run("rmi", "--prune")

    def _run(self, *arguments: str, apart: Sequence[str] = ()) -> str:
        # In a mount namespace of its own: it leaves mounts behind, which then end with it.
        unshare = ["unshare", "--mount", *apart] if os.geteuid() == 0 else []
        return run(["timeout", "900", *unshare, *self._program, *arguments])


class Podman:
    """podman, with the storage of the user."""

    def __str__(self) -> str:
        return "podman (reproducible)"

    def has(self, tag: str) -> bool:
        return bool(run(["podman", "images", "--quiet", "--filter", f"reference={tag}"]))

    def pull(self, name: str, arch: str) -> None:
        run(["timeout", "300", "podman", "pull", "--quiet", f"--platform=linux/{arch}", name])

    def tag(self, name: str, tag: str) -> None:
        run(["podman", "tag", name, tag])

    def build(self, build: Build) -> None:
        run(
            [
                "podman", "build", "--quiet", "--network=none", "--pull=never", "--layers=true",
                f"--timestamp={build.epoch}", *_build_options(build),
            ]
        )  # fmt: skip

    def save(self, tag: str, archive: Path) -> None:
        name = tag.removeprefix("localhost/")
        image = run(["podman", "images", "--quiet", "--no-trunc", tag]).strip()
        image = image.removeprefix("sha256:")  # by its ID, as with buildah
        run(["podman", "push", "--quiet", image, f"docker-archive:{archive}:{name}"])

    def tidy(self) -> None:
        """Leave the user's storage to the user."""


class Docker:
    """docker with BuildKit; its daemon has the storage."""

    def __str__(self) -> str:
        return "docker (BuildKit stamps the time of the build: digests differ from run to run)"

    def has(self, tag: str) -> bool:
        return bool(run(["docker", "images", "--quiet", tag]))

    def pull(self, name: str, arch: str) -> None:
        run(["timeout", "300", "docker", "pull", "--quiet", f"--platform=linux/{arch}", name])

    def tag(self, name: str, tag: str) -> None:
        run(["docker", "tag", name, tag])

    def build(self, build: Build) -> None:
        run(
            ["docker", "build", "--quiet", "--network=none", *_build_options(build)],
            environment={"DOCKER_BUILDKIT": "1", "SOURCE_DATE_EPOCH": str(build.epoch)},
        )

    def save(self, tag: str, archive: Path) -> None:
        name = tag.removeprefix("localhost/")
        run(["docker", "tag", tag, name])
        run(["docker", "save", "--output", str(archive), name])

    def tidy(self) -> None:
        """Leave the daemon's storage to the user."""


def _build_options(build: Build) -> list[str]:
    return [
        f"--platform=linux/{build.arch}",
        *(f"--build-arg={name}={value}" for name, value in build.arguments.items()),
        f"--tag={build.tag}",
        f"--file={build.dockerfile}",
        str(build.context),
    ]


def find_builder(storage: Path) -> Builder:
    """Return buildah, podman or docker of this machine; else install buildah."""
    if found := shutil.which("buildah"):
        return Buildah(found, storage)
    if shutil.which("podman"):
        return Podman()
    if shutil.which("docker") and _answers():
        return Docker()
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("installing buildah with apt-get (once for this machine)", flush=True)
        apt_get = ["apt-get", "-o", "DPkg::Lock::Timeout=600"]
        quiet = {"DEBIAN_FRONTEND": "noninteractive"}
        run([*apt_get, "update", "-q"], environment=quiet)
        run([*apt_get, "install", "-qy", "--no-install-recommends", "buildah"], environment=quiet)
        return Buildah("buildah", storage)
    raise ImagesError(
        "nothing here makes images: put buildah, podman, or docker with a daemon on PATH"
    )


def _answers() -> bool:
    try:
        run(["docker", "buildx", "version"])
        run(["docker", "info"])
    except ImagesError:
        return False
    return True
