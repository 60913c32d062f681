"""What of the installed packages stays, and what counts as a change."""

import json
from pathlib import Path

import pytest
from images.assembling import Assembler, fingerprint, remove_surplus
from tests.stack import places


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """Return what uv installed, in short."""
    for name in (
        "derops/__init__.py",
        "derops_agent/main.py",
        "derops_operator/main.py",
        "derops_headend/main.py",
        "derops_cli/main.py",
        "numpy/tests/test_it.py",
        "numpy/core.pyx",
        "numpy/core.py",
        "bin/f2py",
        "numpy-2.dist-info/METADATA",
        "derops-0.1.0.dist-info/direct_url.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "numpy-2.dist-info/RECORD").write_text(
        'numpy/core.py,sha256=a,1\n"numpy/tests/test_it.py",sha256=b,2\n../bin/f2py,sha256=c,3\n'
    )
    (tmp_path / "derops-0.1.0.dist-info/entry_points.txt").write_text(
        "[console_scripts]\nderops-agent = derops_agent.main:main\n"
        "derops-operator = derops_operator.main:main\n"
        "kubectl-derops = derops_cli.main:main\n"
    )
    (tmp_path / "derops-0.1.0.dist-info/METADATA").write_text("Name: derops\n\n# derops\n")
    (tmp_path / "derops-0.1.0.dist-info/RECORD").write_text(
        "derops-0.1.0.dist-info/METADATA,sha256=d,24\nderops-0.1.0.dist-info/RECORD,,\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("program", "has", "has_not"),
    [
        pytest.param(
            "headend", {"fastapi", "kubernetes", "nats-py", "numpy"}, {"kopf"}, id="headend"
        ),
        pytest.param("agent", {"numpy", "pymodbus"}, {"fastapi", "kubernetes"}, id="agent"),
    ],
)
def test_a_program_has_the_packages_of_all_that_runs_in_its_image(
    program: str, has: set[str], has_not: set[str], tmp_path: Path
) -> None:
    bill = json.loads(Assembler(places.REPOSITORY, tmp_path, "3.13", 0).bill_of_materials(program))

    names = {each["name"] for each in bill["components"]}
    assert has <= names
    assert not has_not & names


def test_only_the_programs_own_packages_stay(library: Path) -> None:
    remove_surplus(library, "agent")

    assert {path.name for path in library.iterdir()} == {
        "derops", "derops_agent", "derops-0.1.0.dist-info", "numpy", "numpy-2.dist-info",
    }  # fmt: skip
    assert [path.name for path in (library / "numpy").iterdir()] == ["core.py"]
    assert not (library / "derops-0.1.0.dist-info/direct_url.json").exists()


def test_the_records_say_what_is_left(library: Path) -> None:
    remove_surplus(library, "agent")

    record = (library / "numpy-2.dist-info/RECORD").read_text()
    assert record == "numpy/core.py,sha256=a,1\n"
    own = (library / "derops-0.1.0.dist-info/RECORD").read_text()
    assert own == (
        "derops-0.1.0.dist-info/METADATA,sha256=sMFp5O7xG6ssbQjomJKkQtl5SoZCY7ZiOzYVVu-VyHc,13\n"
        "derops-0.1.0.dist-info/RECORD,,\n"
    )
    scripts = (library / "derops-0.1.0.dist-info/entry_points.txt").read_text()
    assert scripts == "[console_scripts]\nderops-agent = derops_agent.main:main\n"


def test_a_change_of_a_source_is_a_change_and_one_of_bytecode_is_none(tmp_path: Path) -> None:
    source = tmp_path / "agent" / "derops_agent" / "main.py"
    source.parent.mkdir(parents=True)
    source.write_text("1")
    before = fingerprint(tmp_path)

    bytecode = source.parent / "__pycache__" / "main.cpython-311.pyc"
    bytecode.parent.mkdir()
    bytecode.touch()
    assert fingerprint(tmp_path) == before

    source.write_text("2")
    assert fingerprint(tmp_path) != before
