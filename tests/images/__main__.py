"""``python -m tests.images``: make the images that only tests use, for this machine."""

import hashlib
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from images.archives import image_digest
from images.builders import Build, find_builder, own_arch
from images.commands import ImagesError
from tests.stack import build, places
from tests.stack.processes import StackError

from images import debian

OUTPUT = places.BUILD / "images"

_HERE = Path(__file__).parent
_NOT_FOR_A_SERVER = (
    r"adduser|base-passwd|init-system-helpers|libjson-perl|libllvm.*|libipc-run-perl|libperl.*|"
    r"libz3.*|locales|passwd|perl.*|postgresql-client-common|postgresql-common.*|procps|ucf"
)


def _postgres(context: Path) -> None:
    packages = ("postgresql-17", "postgresql-17-timescaledb")
    root = debian.file_system(packages, own_arch(), left_out=_NOT_FOR_A_SERVER)
    (context / "rootfs.tar").hardlink_to(root)
    shutil.copyfile(_HERE / "postgres-entrypoint", context / "postgres-entrypoint")


def _modbusserver(context: Path) -> None:
    shutil.copy(build.program("modbusserver"), context / "modbusserver")


_IMAGES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "postgres": ("derops-test/postgres:17", _postgres),
    "modbusserver": ("derops-test/modbusserver:dev", _modbusserver),
}


def main() -> int:
    """Make what is missing; return the exit code."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    try:
        with places.locked("images"):
            for program, (name, fill) in _IMAGES.items():
                _make(program, name, fill)
    except (ImagesError, StackError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _make(program: str, name: str, fill: Callable[[Path], None]) -> None:
    archive = OUTPUT / f"{program}-{own_arch()}.tar"
    with tempfile.TemporaryDirectory(prefix="test-", dir=places.cache() / "images") as scratch:
        context = Path(scratch)
        fill(context)
        dockerfile = _HERE / f"{program}.Dockerfile"
        key = _key([dockerfile, *sorted(context.iterdir())])
        made = archive.with_suffix(".key")
        if not (archive.exists() and made.exists() and made.read_text() == key):
            builder = find_builder(places.cache() / "images" / "storage")
            tag = f"localhost/{name}"
            builder.build(
                Build(
                    context=context,
                    dockerfile=dockerfile,
                    tag=tag,
                    arch=own_arch(),
                    arguments={},
                    epoch=0,
                )
            )
            part = archive.with_suffix(".part")
            part.unlink(missing_ok=True)
            builder.save(tag, part)
            part.rename(archive)
            made.write_text(key)
    print(f"{image_digest(archive)}  {name}  linux/{own_arch()}", flush=True)


def _key(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
