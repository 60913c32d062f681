"""The reference of the plugin has its commands, options, defaults and JSON."""

import inspect
import re
from typing import get_args

import pytest
import typer
from tests.cli.seeing import NOW, PLACE, dispatch, evidence
from tests.repository.test_docs import REFERENCE, REPOSITORY

from derops.data_path import AssetFault, SeenFault, SharedFault
from derops.runbooks import RUNBOOK_OF
from derops_cli import bundle, collecting, main, timeline, words
from derops_cli.diagnosing import diagnose
from derops_cli.diagnosis import Standing, Verdict
from derops_cli.dispatches import Stop, diagnose_dispatch
from derops_cli.evidence import Missing
from derops_cli.fleet import Fleet
from derops_cli.pages import json_of, json_of_dispatch, json_of_fleet, json_of_timeline

TEXT = (REFERENCE / "cli.md").read_text(encoding="utf-8")
CALLBACKS = [each.callback for each in main.app.registered_commands]
COMMANDS = {each.__name__: each for each in CALLBACKS if each is not None}


def options(command: str) -> dict[str, object]:
    """Return the options of a command with their defaults, by their long names."""
    found: dict[str, object] = {}
    for each in inspect.signature(COMMANDS[command]).parameters.values():
        _, info = get_args(each.annotation)
        if isinstance(info, typer.models.OptionInfo):
            named = [info.default, *(info.param_decls or ())]
            long = [name for name in named if isinstance(name, str) and name.startswith("--")]
            found[long[0] if long else f"--{each.name.replace('_', '-')}"] = each.default
    return found


def documented(heading: str) -> str:
    return TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def test_it_has_exactly_the_commands() -> None:
    said = set(re.findall(r"^\| `(\w+)[^`]*` \|", documented("Commands"), re.MULTILINE))

    assert said == set(COMMANDS)


def test_it_has_exactly_the_options() -> None:
    said = {
        name
        for first in re.findall(r"^\| ([^|]+) \|", documented("Options"), re.MULTILINE)
        for name in re.findall(r"`(--[\w-]+)`", first)
    }

    known = {name for command in COMMANDS for name in options(command)}
    assert said == known | {"--help", "--version"}


@pytest.mark.parametrize("command", COMMANDS)
def test_it_has_the_defaults(command: str) -> None:
    rows = {
        name: line
        for line in documented("Options").splitlines()
        for name in re.findall(r"`(--[\w-]+)`", line.split("|")[1] if "|" in line else "")
    }

    for name, default in options(command).items():
        if isinstance(default, str | float | int) and default is not False:
            assert f"`{default}`" in rows[name], f"{name} has another default"


def test_it_has_the_exit_codes() -> None:
    said = set(re.findall(r"^\| `(\d)` \|", documented("Exit codes"), re.MULTILINE))

    assert said == {str(code) for code in (main.FLOWS, main.BROKEN, main.USAGE, main.CANNOT_LOOK)}


def test_it_has_the_fields_and_words_of_the_json() -> None:
    found = diagnose(evidence(), NOW, PLACE)
    order = diagnose_dispatch(dispatch("Complete", "WindowEnded"), Missing("", ""), NOW, PLACE)
    link = json_of(found)["links"][3]
    fields = {
        *json_of(found), *json_of_dispatch(order), *json_of_fleet(Fleet(within="")),
        *json_of_timeline("", "", [], []), *link, *link["evidence"][0],
    }  # fmt: skip
    said = set(re.findall(r"`(\w+)`", documented("JSON")))

    assert fields <= said
    assert {*Verdict, *Standing, *Stop} <= said


def test_it_has_what_no_program_says_of_itself() -> None:
    said = set(re.findall(r"^\| `(\w+)` \|", documented("How it judges"), re.MULTILINE))

    assert said == set(SeenFault)


def test_it_has_the_bounds() -> None:
    bounds = (
        collecting.MOST_PAGES * collecting.PAGE_ROWS,
        collecting.MOST_EVENTS,
        timeline.MOST_ENTRIES,
        bundle.MOST_OBJECTS,
        words.LONGEST_TEXT,
    )

    assert all(f"{each:,}" in documented("Bounds") for each in bounds)


def test_each_fault_has_its_runbook_where_runbooks_are() -> None:
    there = {file.name for file in (REPOSITORY / "docs/runbooks").glob("derops-*.md")}
    named = {page.rpartition("/")[2] for page in RUNBOOK_OF.values()}

    assert set(RUNBOOK_OF) == {*AssetFault, *SharedFault, *SeenFault}
    assert not there or named <= there
