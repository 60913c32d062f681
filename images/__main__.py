"""``python -m images``: make each image that is missing or older than its sources."""

import argparse
import hashlib
import os
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.stack import places

from images import assembling
from images.archives import image_digest, read_image
from images.assembling import Assembler
from images.bases import PYTHON_MINOR, Bases
from images.builders import Build, Builder, find_builder, own_arch
from images.commands import ImagesError, run
from images.inspecting import findings
from images.sbom import CONTENT_READ, bill_of_materials

PROGRAMS = ("operator", "headend", "agent")
ARCHS = ("amd64", "arm64")
OUTPUT = places.BUILD / "images"

_OLDEST_EPOCH = 315532800
"""1980: archives of the zip format, as wheels are, know no earlier time."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the images of one run share."""

    base: str
    """A name in a registry; empty = the usual one, or Debian's packages where no registry is."""
    python_minor: str
    version: str
    revision: str
    epoch: int

    def key(self, program: str, arch: str, sources: str) -> str:
        """Return what tells whether an image is still the one that would be made."""
        return hashlib.sha256(repr((self, program, arch, sources)).encode()).hexdigest()


def main(arguments: list[str]) -> int:
    """Make the images; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m images", description=__doc__)
    parser.add_argument("--program", action="append", choices=PROGRAMS, help="default: all")
    parser.add_argument("--arch", action="append", choices=[*ARCHS, "own"], help="default: both")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    try:
        with places.locked("images"):
            archs = [own_arch() if arch == "own" else arch for arch in options.arch or ARCHS]
            make(options.program or PROGRAMS, archs, wanted(), options.output)
    except ImagesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def wanted() -> Wanted:
    """Return what the environment and the repository ask for."""
    project = tomllib.loads((places.REPOSITORY / "pyproject.toml").read_text())["project"]
    revision, epoch = _revision(places.REPOSITORY)
    return Wanted(
        base=os.environ.get("BASE", ""),
        python_minor=os.environ.get("BASE_PYTHON") or PYTHON_MINOR,
        version=os.environ.get("VERSION") or project["version"],
        revision=revision,
        epoch=int(os.environ.get("SOURCE_DATE_EPOCH") or epoch),
    )


def _revision(repository: Path) -> tuple[str, int]:
    """Return the last commit that changed what images are made from, and when it was made."""
    git = ["git", "-C", str(repository)]
    if shutil.which("git") is None or not (repository / ".git").exists():
        return "unknown", _OLDEST_EPOCH
    log = run([*git, "log", "-1", "--format=%H %ct", "--", *assembling.INPUTS]).split()
    changed = run([*git, "status", "--porcelain", "--", *assembling.INPUTS])
    return log[0] + ("-modified" if changed else ""), int(log[1])


def make(programs: Sequence[str], archs: Sequence[str], wanted: Wanted, output: Path) -> None:
    """Make what is missing of the images into ``output``."""
    output.mkdir(parents=True, exist_ok=True)
    sources = assembling.fingerprint(places.REPOSITORY)
    missing = [
        (program, arch)
        for program in programs
        for arch in archs
        if not _is_made(output, program, arch, wanted.key(program, arch, sources))
    ]
    if missing:
        builder = find_builder(places.cache() / "images" / "storage")
        print(f"making images with {builder}", flush=True)
        with tempfile.TemporaryDirectory(prefix="derops-images-") as scratch:
            maker = _Maker(builder, wanted, output, Path(scratch))
            for program, arch in missing:
                made = output / f"{program}-{arch}.key"
                made.unlink(missing_ok=True)
                maker.make(program, arch)
                made.write_text(wanted.key(program, arch, sources))
        builder.tidy()
    lines = [
        f"{image_digest(output / f'{program}-{arch}.tar')}"
        f"  derops/{program}:{wanted.version}  linux/{arch}\n"
        for program in PROGRAMS
        for arch in ARCHS  # those of an earlier state are not told of
        if _is_made(output, program, arch, wanted.key(program, arch, sources))
    ]
    (output / "digests.txt").write_text("".join(lines))
    print("".join(lines), end="")


def _is_made(output: Path, program: str, arch: str, key: str) -> bool:
    """Return whether an image is there as it would be made now."""
    archive, made = output / f"{program}-{arch}.tar", output / f"{program}-{arch}.key"
    return archive.exists() and made.exists() and made.read_text() == key


class _Maker:
    """Makes one image after another, on one base for each architecture."""

    def __init__(self, builder: Builder, wanted: Wanted, output: Path, scratch: Path) -> None:
        self._wanted = wanted
        self._output = output
        self._scratch = scratch
        self._builder = builder
        self._bases = Bases(builder, wanted.base, wanted.python_minor, scratch)
        self._assembler = Assembler(places.REPOSITORY, scratch, wanted.python_minor, wanted.epoch)

    def make(self, program: str, arch: str) -> None:
        """Write archive and bill of materials of one image."""
        version, minor = self._wanted.version, self._wanted.python_minor
        tag = f"localhost/derops/{program}:{version}"
        base = self._bases.find(arch)
        context = self._scratch / "context"
        self._assembler.assemble(program, arch, context / "derops")
        self._builder.build(
            Build(
                context=context,
                dockerfile=places.REPOSITORY / "images" / "Dockerfile",
                tag=tag,
                arch=arch,
                epoch=self._wanted.epoch,
                arguments={
                    "BASE": base.tag,
                    "BUILDER": self._bases.find(own_arch()).tag,
                    "BUILDPLATFORM": f"linux/{own_arch()}",
                    "TARGETPLATFORM": f"linux/{arch}",
                    "PROGRAM": program,
                    "VERSION": version,
                    "REVISION": self._wanted.revision,
                    "BASE_NAME": base.name,
                },
            )
        )
        archive = self._output / f"{program}-{arch}.tar"
        part = archive.with_suffix(".part")
        part.unlink(missing_ok=True)
        self._builder.save(tag, part)
        image = read_image(part, *CONTENT_READ)
        if found := findings(image, program, arch, minor):
            raise ImagesError(f"image of {program} ({arch}): " + "\n".join(found[:20]))
        locked = self._assembler.bill_of_materials(program)
        bill = bill_of_materials(image, locked, f"derops/{program}", version, arch)
        (self._output / f"{program}-{arch}.cdx.json").write_text(bill)
        part.rename(archive)
        print(f"{archive}: {archive.stat().st_size / 1e6:.0f} MB, on {base.name}", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
