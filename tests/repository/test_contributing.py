"""What CONTRIBUTING names is there: files and folders, make targets, and each package of ours."""

import re
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
ROOTS = ["agent/derops_agent", "operator/derops_operator", "headend/derops_headend"]
ROOTS += ["headend/derops", "cli/derops_cli"]
NAMES = re.compile(r"`([\w.-]+(?:/[\w.-]+)*/?)`")


def in_tables(before: str = "") -> dict[str, list[str]]:
    """Return the paths in the table of each tree, by the root that its heading names.

    Args:
        before: What stands before the root in the heading.
    """
    heading = rf"^\| {re.escape(before)}`([\w/]+)/`[^\n]*\n((?:\|[^\n]*\n)+)"
    tables = re.findall(heading, TEXT, re.MULTILINE)
    return {root: NAMES.findall(rows) for root, rows in tables if root in ROOTS}


def test_each_path_is_there() -> None:
    tables = [*in_tables().items(), *in_tables("question | ").items()]
    trees = [f"{root}/{name}" for root, names in tables for name in names]
    relative = {name for _, names in tables for name in names}
    others = [name for name in NAMES.findall(TEXT) if "/" in name and name not in relative]

    assert len(trees) > 50
    assert len(others) > 50
    assert [path for path in (*trees, *others) if not (REPOSITORY / path).exists()] == []


def test_each_module_is_there() -> None:
    named = {name.rpartition("/")[2] for name in NAMES.findall(TEXT) if name.endswith(".py")}
    there = {file.name for root in (*ROOTS, "tests") for file in (REPOSITORY / root).rglob("*.py")}

    assert len(named) > 100
    assert sorted(named - there) == []


def test_each_package_has_its_line() -> None:
    for root, names in in_tables().items():
        packages = {each.parent.name for each in (REPOSITORY / root).glob("*/__init__.py")}
        assert packages <= {name.split("/")[0] for name in names}, root
    assert sorted(in_tables()) == sorted(ROOTS)


def test_each_make_target_is_there() -> None:
    targets = re.findall(r"^([a-z0-9-]+):", MAKEFILE, re.MULTILINE)
    named = re.findall(r"(?:`|^)make ([a-z0-9-]+)", TEXT, re.MULTILINE)

    assert len(named) > 10
    assert set(named) <= set(targets)
