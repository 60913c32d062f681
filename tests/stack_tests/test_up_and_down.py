"""``make up`` and ``make down``: a stack in the background, told in stack.json."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.stack.places import REPOSITORY, skip_without_parts
from tests.waiting import eventually


def run(command: str, state: Path) -> subprocess.CompletedProcess[str]:
    skip_without_parts()
    return subprocess.run(
        [sys.executable, "-m", "tests.stack", command, "--state", str(state)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


def read(state: Path) -> dict[str, Any]:
    description: dict[str, Any] = json.loads((state / "stack.json").read_text())
    return description


def call_the_api(state: Path) -> dict[str, Any]:
    """Type what ``make status`` says, with a real account, and return the answer."""
    said = run("status", state).stdout
    command = re.search(r"^  (curl .*\n.*)$", said, re.MULTILINE)
    assert command is not None, said
    description = read(state)
    answer = subprocess.run(
        ["bash", "-euc", command[1].replace("ACCOUNT -n NAMESPACE", "default -n default")],
        env={
            "PATH": f"{Path(description['kubectl']).parent}:{os.environ['PATH']}",
            "KUBECONFIG": description["kubeconfig"],
        },
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    found: dict[str, Any] = json.loads(answer)
    return found


def alive(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a zombie has none
    except FileNotFoundError:
        return False


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
    """Return the directory of a stack that is up; it is down afterwards whatever happened."""
    started = run("up", tmp_path)
    assert started.returncode == 0, started.stdout + started.stderr
    yield tmp_path
    run("down", tmp_path)


def test_up_says_all_and_restarts_what_dies_and_down_leaves_nothing(state: Path) -> None:
    description = read(state)
    assert set(description) >= {
        "kubeconfig", "databaseURL", "gateway", "api", "metrics", "processes", "dataDirectory",
    }  # fmt: skip
    assert set(description["metrics"]) == {"operator", "gateway", "writer", "api", "agent"}
    assert call_the_api(state)["name"] == "system:serviceaccount:default:default"
    first = description["processes"]["gateway"]

    os.kill(first, signal.SIGKILL)
    second = eventually(
        lambda: pid if (pid := read(state)["processes"]["gateway"]) != first else None,
        "another gateway in stack.json",
    )
    assert alive(second)
    assert run("up", state).stdout.startswith("already up")

    pids = read(state)["processes"].values()
    assert run("down", state).stdout == "down\n"
    assert not [pid for pid in pids if alive(pid)]
    assert not Path(description["dataDirectory"]).exists()
    assert not (state / "stack.json").exists()


def test_down_ends_what_a_killed_supervisor_left(state: Path) -> None:
    description = read(state)
    pids = description["processes"]

    os.kill(pids.pop("supervisor"), signal.SIGKILL)
    said = run("down", state).stdout

    assert "killing gateway" in said
    eventually(lambda: not [pid for pid in pids.values() if alive(pid)], "the end of all processes")
    assert not Path(description["dataDirectory"]).exists()


def test_down_without_up_says_so(tmp_path: Path) -> None:
    done = run("down", tmp_path)

    assert (done.returncode, done.stdout) == (0, "not up\n")
