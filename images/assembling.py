"""Lays out our part of an image: /opt/derops, for each program and architecture.

This is the one step that uses a network, and it needs no emulator: uv chooses the wheels of the
other platform. uv.lock has the hash of each.
"""

import base64
import hashlib
import os
import re
import shutil
from pathlib import Path

from images.commands import ImagesError, run

_PLATFORMS = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}

_EXTRAS = {"headend": ("headend", "api")}
"""What of pyproject.toml's extras a program has, where that is not the one of its name."""

_SURPLUS = (
    ".lock",
    "bin",
    "**/tests",
    "**/__pycache__",
    "*.dist-info/direct_url.json",
    "*.dist-info/uv_*.json",
    "**/*.a",
    "**/*.c",
    "**/*.h",
    "**/*.pxd",
    "**/*.pyi",
    "**/*.pyx",
    "**/conftest.py",
    "**/test_*.py",
    "**/*_test.py",
    "aiohttp/pytest_plugin.py",
    "numpy/f2py",
    "numpy/random/_examples",
)
"""Files that only serve to test or to compile, or that tell of the machine where we are."""

_SCRIPT = """\
#!/usr/bin/python3 -PsuB
import sys

sys.argv[0] = "derops-{program}"
if "/opt/derops/lib" not in sys.path:  # as where somebody starts it with an empty environment
    sys.path.insert(1, "/opt/derops/lib")

from derops_{program}.main import main

sys.exit(main())
"""


def uv() -> str:
    """Return uv: the one on PATH, or the one that ``make setup`` installed."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    installed = cache / "derops" / "tools" / "bin" / "uv"
    found = shutil.which("uv") or (str(installed) if installed.exists() else None)
    if found is None:
        raise ImagesError("uv is neither on PATH nor in the cache: make setup installs it")
    return found


class Assembler:
    """Assembles programs of one repository, for one version of Python."""

    def __init__(self, repository: Path, scratch: Path, python_minor: str, epoch: int) -> None:
        self._repository = repository
        self._scratch = scratch
        self._python_minor = python_minor
        self._environment = {"SOURCE_DATE_EPOCH": str(epoch), "UV_NO_PROGRESS": "1"}
        self._uv = uv()

    def assemble(self, program: str, arch: str, target: Path) -> None:
        """Fill ``target`` with the folders bin and lib of a program."""
        shutil.rmtree(target, ignore_errors=True)
        library = target / "lib"
        library.mkdir(parents=True)
        install = [
            self._uv, "pip", "install", "--quiet", "--target", str(library),
            "--link-mode", "copy",  # else what is done to a file here is done to uv's cache
            "--python-platform", _PLATFORMS[arch], "--python-version", self._python_minor,
            "--only-binary", ":all:",
            "--no-binary", "nkeys",  # pure Python, and published as source only
            "--build-constraints", str(self._requirements("build")),
        ]  # fmt: skip
        self._run([*install, "--require-hashes", "--requirement", str(self._requirements(program))])
        self._run([*install, "--no-deps", str(self._wheel())])
        remove_surplus(library, program)
        scripts = target / "bin"
        scripts.mkdir()
        (scripts / f"derops-{program}").write_text(_SCRIPT.format(program=program))
        (scripts / "entrypoint").symlink_to(f"derops-{program}")
        ready = self._repository / "images" / "ready"
        if ready.exists():
            shutil.copyfile(ready, scripts / "ready")
        for path in [target, *target.rglob("*")]:
            if not path.is_symlink():
                path.chmod(0o755 if path.is_dir() or path.parent == scripts else 0o644)

    def bill_of_materials(self, program: str) -> str:
        """Return what the lock says that a program is made of, in CycloneDX's JSON."""
        return self._export(*_extras(program), "--format", "cyclonedx1.5")

    def _wheel(self) -> Path:
        built = list((self._scratch / "wheel").glob("*.whl"))
        if not built:
            constraints = ["--build-constraints", str(self._requirements("build"))]
            command = ["build", "--quiet", "--wheel", "--require-hashes", *constraints]
            out = ["--out-dir", str(self._scratch / "wheel"), str(self._repository)]
            self._run([self._uv, *command, *out])
            built = list((self._scratch / "wheel").glob("*.whl"))
        return built[0]

    def _requirements(self, name: str) -> Path:
        """Return the requirements of a program, or of building wheels, by hash."""
        file = self._scratch / f"{name}.txt"
        if not file.exists():
            what = ["--only-group", "build"] if name == "build" else _extras(name)
            file.write_text(self._export(*what, "--no-emit-project"))
        return file

    def _export(self, *arguments: str) -> str:
        return self._run([self._uv, "export", "--quiet", "--frozen", "--no-dev", *arguments])

    def _run(self, command: list[str]) -> str:
        return run(command, directory=self._repository, environment=self._environment)


def _extras(program: str) -> list[str]:
    return [word for name in _EXTRAS.get(program, (program,)) for word in ("--extra", name)]


def remove_surplus(library: Path, program: str) -> None:
    """Remove other programs, and what nothing runs; what lists the files says so then."""
    others = {"operator", "headend", "agent", "cli"} - {program}
    patterns = [*_SURPLUS, *(f"derops_{other}" for other in others)]
    for path in {path for pattern in patterns for path in library.glob(pattern)}:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for own in library.glob("derops-*.dist-info"):
        scripts = own / "entry_points.txt"
        lines = scripts.read_text().splitlines(keepends=True)
        scripts.write_text("".join(line for line in lines if not _names(line, others)))
        metadata = own / "METADATA"
        fields, _, _ = metadata.read_text().partition("\n\n")
        metadata.write_text(fields + "\n")  # the rest is the README, which is not of the images
    for record in library.glob("*.dist-info/RECORD"):  # it is to say what is there
        lines = record.read_text().splitlines(keepends=True)
        kept = [line for line in lines if (library / _recorded(line)).exists()]
        if record.parent.name.startswith("derops-"):
            kept = [_record(library, _recorded(line)) for line in kept]
        record.write_text("".join(kept))


def _names(line: str, programs: set[str]) -> bool:
    return any(
        line.startswith(f"derops-{program} ") or f"= derops_{program}." in line
        for program in programs
    )


def _recorded(line: str) -> str:
    """Return the path in a line of a RECORD."""
    found = re.match(r'"([^"]*)"|([^,]*)', line)
    return (found[1] or found[2]) if found else ""


def _record(library: Path, path: str) -> str:
    """Return the line of a RECORD for a file as it is; a RECORD has no hash of itself."""
    if path.endswith("/RECORD"):
        return f"{path},,\n"
    content = (library / path).read_bytes()
    digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
    return f"{path},sha256={digest},{len(content)}\n"


def fingerprint(repository: Path) -> str:
    """Return what tells one state of all that goes into images from another."""
    digest = hashlib.sha256()
    for file in inputs(repository):
        digest.update(f"{file.relative_to(repository)}\0".encode() + file.read_bytes() + b"\0")
    return digest.hexdigest()


INPUTS = (
    "operator", "headend", "agent", "cli", "images", "pyproject.toml", "uv.lock", "LICENSE",
)  # fmt: skip


def inputs(repository: Path) -> list[Path]:
    """Return all files that images are made from, in a fixed order."""
    files = []
    for name in INPUTS:
        path = repository / name
        files += [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sorted(file for file in files if "__pycache__" not in file.parts)
