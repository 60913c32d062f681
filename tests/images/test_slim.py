"""What is taken from a base image, be it Debian's Python or the one of the official images."""

import sys
from pathlib import Path

import pytest

from images import slim

_MINOR = f"{sys.version_info.major}.{sys.version_info.minor}"
_STATUS = "Package: apt\nVersion: 3\n\nPackage: libc6\nVersion: 2\n\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a tree like that of an official python image."""
    files = {
        "etc/passwd": "root:x:0:0::/root:/bin/sh\n",
        "etc/group": "root:x:0:\n",
        "var/lib/dpkg/status": _STATUS,
        "var/lib/dpkg/info/apt.list": "/.\n/usr/bin/apt\n/usr/bin/apt-get\n",
        "usr/bin/apt": "",
        "usr/bin/apt-get": "",
        "usr/bin/chfn": "",
        "usr/share/doc/libc6/copyright": "free",
        "usr/share/doc/libc6/changelog": "long",
        f"usr/local/bin/python{_MINOR}": "",
        f"usr/local/bin/pip{_MINOR}": "",
        f"usr/local/include/python{_MINOR}/patchlevel.h": "",
        f"usr/local/include/python{_MINOR}/Python.h": "",
        f"usr/local/lib/python{_MINOR}/this.py": "x = 1\n",
        f"usr/local/lib/python{_MINOR}/site-packages/pip/__init__.py": "",
        f"usr/local/lib/python{_MINOR}/__pycache__/old.cpython-39.pyc": "",
        "root/.bashrc": "",
        "var/cache/apt/pkgcache.bin": "",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "usr/bin/chfn").chmod(0o4755)
    return tmp_path


def test_what_installs_or_remembers_is_gone(root: Path) -> None:
    slim.main(root, _MINOR)

    left = {str(path.relative_to(root)) for path in root.rglob("*") if not path.is_dir()}
    bytecode = f"usr/local/lib/python{_MINOR}/__pycache__/this.{sys.implementation.cache_tag}.pyc"
    assert left == {
        "etc/group",
        "etc/passwd",
        "usr/bin/chfn",
        "usr/bin/python3",
        f"usr/local/bin/python{_MINOR}",
        f"usr/local/include/python{_MINOR}/patchlevel.h",
        f"usr/local/lib/python{_MINOR}/this.py",
        bytecode,
        "usr/share/doc/libc6/copyright",
        "var/lib/dpkg/status",
    }


def test_dpkgs_list_says_what_is_left(root: Path) -> None:
    slim.main(root, _MINOR)

    assert (root / "var/lib/dpkg/status").read_text() == "Package: libc6\nVersion: 2\n\n"


def test_nothing_may_change_who_runs_it(root: Path) -> None:
    slim.main(root, _MINOR)

    assert (root / "usr/bin/chfn").stat().st_mode & 0o7777 == 0o755


def test_the_user_has_a_name(root: Path) -> None:
    slim.main(root, _MINOR)

    assert (root / "etc/passwd").read_text().splitlines()[-1].startswith("derops:x:65532:65532:")


def test_bytecode_does_not_depend_on_the_time_of_a_file(root: Path) -> None:
    source = root / f"usr/local/lib/python{_MINOR}/this.py"
    compiled = source.parent / "__pycache__" / f"this.{sys.implementation.cache_tag}.pyc"

    slim.compile_library(root)
    first = compiled.read_bytes()
    source.touch()
    compiled.unlink()
    slim.compile_library(root)
    assert compiled.read_bytes() == first


def test_another_python_than_the_packages_are_for_ends_the_build(root: Path) -> None:
    with pytest.raises(SystemExit, match=rf"has Python {_MINOR}.*BASE_PYTHON={_MINOR}"):
        slim.main(root, "3.99")
