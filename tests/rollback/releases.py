"""Releases as they are installed: the wheel of a commit, with the libraries of its lock file."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.stack import places
from tests.stack.processes import StackError


@dataclass(frozen=True, slots=True)
class Release:
    """One that is installed in a folder of its own.

    Attributes:
        commit: Its first 12 digits.
        programs: Where its commands are.
    """

    commit: str
    programs: Path

    def has(self, package: str) -> bool:
        """Tell whether it has a package, such as ``derops_headend/api``."""
        return any(self.programs.parent.glob(f"lib/python*/site-packages/{package}/__init__.py"))


def install(commit: str) -> Release:
    """Return the release of a commit; build and install it first if the cache does not have it.

    Raises:
        StackError: The history has no such commit, or it cannot be built.
    """
    commit = _run(["git", "rev-parse", "--verify", f"{commit}^{{commit}}"]).strip()[:12]
    directory = places.cache() / f"release-{commit}"
    programs = directory / "venv" / "bin"
    complete = directory / ".complete"
    if not complete.exists():
        with places.locked(f"release-{commit}"):
            if not complete.exists():
                _build(commit, directory)
                complete.touch()
    return Release(commit, programs)


def _build(commit: str, directory: Path) -> None:
    """Build in place: the commands of an environment name the folder that it is in."""
    print(f"building release {commit} once for this machine", flush=True)
    shutil.rmtree(directory, ignore_errors=True)
    source = directory / "source"
    source.mkdir(parents=True)
    archive = directory / "source.tar"
    _run(["git", "archive", "--output", str(archive), commit])
    _run(["tar", "-xf", str(archive), "-C", str(source)])
    # Not editable: uv builds the wheel, and installs that.
    command = [_uv(), "sync", "--project", str(source), "--frozen", "--no-dev", "--no-editable"]
    _run([*command, "--all-extras"], UV_PROJECT_ENVIRONMENT=str(directory / "venv"))


def _uv() -> str:
    """Return the tool that ``make setup`` uses."""
    found = shutil.which("uv") or shutil.which("uv", path=places.cache() / "tools" / "bin")
    if found is None:
        raise StackError("uv is missing: make setup")
    return found


def _run(command: list[str], **environment: str) -> str:
    own = {key: value for key, value in os.environ.items() if key != "VIRTUAL_ENV"}
    done = subprocess.run(
        command,
        cwd=places.REPOSITORY,
        env=own | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StackError(f"{' '.join(command[:3])} failed\n{done.stderr[-4000:]}")
    return done.stdout
