"""Runs other programs; what they say is shown only where they fail."""

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


class ImagesError(Exception):
    """An image cannot be made; the text says why and what to do."""


def run(
    command: list[str], *, directory: Path | None = None, environment: Mapping[str, str] = {}
) -> str:
    """Return what a program printed; raise ImagesError with the end of it where it failed."""
    done = subprocess.run(
        command,
        cwd=directory,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        said = (done.stdout + done.stderr).strip()[-4000:]
        raise ImagesError(f"{' '.join(command[:3])} ended with {done.returncode}\n{said}")
    return done.stdout
