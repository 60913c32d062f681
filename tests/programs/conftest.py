"""Where a program has its files."""

from pathlib import Path

import pytest


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Return a directory that has ``data``, the only one in which a program may write."""
    (tmp_path / "data").mkdir(mode=0o700)
    return tmp_path
