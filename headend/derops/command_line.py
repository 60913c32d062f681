"""What all our commands have: ``--help``, ``--version``, and usage after a wrong argument."""

import argparse
from importlib.metadata import PackageNotFoundError, version
from typing import Any


class Parser(argparse.ArgumentParser):
    """A parser that knows its version, and takes no abbreviation; its sub-commands' do likewise."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self.add_argument(
            "--version", action="version", version=f"{self.prog.split()[0]} {own_version()}"
        )


def own_version() -> str:
    """Return the version of this product; 0 = it was not installed as a package."""
    try:
        return version("derops")
    except PackageNotFoundError:
        return "0"
