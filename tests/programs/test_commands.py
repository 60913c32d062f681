"""Every command says what it is for, which version it is, and how it is called where it is not."""

import argparse
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.stack.places import REPOSITORY

import derops_agent.main
import derops_headend.main
import derops_operator.main

BIN = Path(sys.executable).parent


def commands(parser: argparse.ArgumentParser) -> Iterator[str]:
    """Yield what a parser can be called by, and those below it."""
    yield parser.prog
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from commands(below)


PROGRAMS = [derops_operator.main, derops_headend.main, derops_agent.main]
COMMANDS = [command for program in PROGRAMS for command in commands(program.make_parser())]


def run(command: str) -> subprocess.CompletedProcess[str]:
    """Run a command without any setting."""
    program, *arguments = command.split()
    return subprocess.run(
        [BIN / program, *arguments], env={}, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_a_usage_and_a_sentence(command: str) -> None:
    result = run(f"{command} --help")

    assert (result.returncode, result.stderr) == (0, "")
    usage, says = result.stdout.split("\n\n")[:2]
    assert usage.startswith(f"usage: {command} ")
    assert says.endswith(".")
    assert "--version" in result.stdout


def test_all_commands_are_looked_at() -> None:
    assert {"derops-operator", "derops-headend skip-record", "derops-agent probe"} < set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_version_is_that_of_the_package(command: str) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]

    result = run(f"{command} --version")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{command.split()[0]} {project['version']}\n"


@pytest.mark.parametrize("arguments", ["--no-such-option", "no-such-argument", "--vers"])
@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_arguments_are_2_with_usage(command: str, arguments: str) -> None:
    result = run(f"{command} {arguments}")

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"usage: {command.split()[0]} ")
    assert "Traceback" not in result.stderr
