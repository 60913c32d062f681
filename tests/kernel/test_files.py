"""Files of derops are their owner's alone, whoever made them and with whatever umask."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from derops.sqlite import Schema
from derops_agent.storage import open_database
from derops_headend.eventlog.sqlite import SqliteEventLog
from derops_headend.gateway.desired_store import DesiredStore


@pytest.fixture(autouse=True)
def _open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


def close(opened: DesiredStore | SqliteEventLog | sqlite3.Connection) -> None:
    opened.close()


def open_ledger(path: Path) -> sqlite3.Connection:
    return open_database(path, "CREATE TABLE t (a INTEGER) STRICT", Schema(1, readable_from=1))


OPENERS: list[Callable[[Path], DesiredStore | SqliteEventLog | sqlite3.Connection]] = [
    lambda path: DesiredStore(path, 1),
    lambda path: SqliteEventLog(path, max_bytes=2**24),
    open_ledger,
]


@pytest.mark.parametrize("open_file", OPENERS)
def test_a_new_file_and_what_lies_beside_it_are_private(
    tmp_path: Path, open_file: Callable[[Path], DesiredStore]
) -> None:
    directory = tmp_path / "data"
    directory.mkdir(mode=0o755)
    opened = open_file(directory / "some.db")

    found = modes(directory)
    close(opened)

    assert {"some.db", "some.db-wal"} <= found.keys()
    assert set(found.values()) == {0o600}


@pytest.mark.parametrize("open_file", OPENERS)
def test_a_file_that_others_could_read_is_tightened(
    tmp_path: Path, open_file: Callable[[Path], DesiredStore]
) -> None:
    path = tmp_path / "data" / "some.db"
    path.parent.mkdir(mode=0o755)
    close(open_file(path))
    path.chmod(0o644)

    opened = open_file(path)
    found = modes(path.parent)
    close(opened)

    assert set(found.values()) == {0o600}


@pytest.mark.parametrize("open_file", [OPENERS[0], OPENERS[2]])
def test_a_new_directory_is_private(
    tmp_path: Path, open_file: Callable[[Path], DesiredStore]
) -> None:
    close(open_file(tmp_path / "new" / "some.db"))

    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("mode", [0o1777, 0o755])
def test_a_directory_that_others_use_stays_theirs(tmp_path: Path, mode: int) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(mode)

    close(open_ledger(shared / "some.db"))

    assert shared.stat().st_mode & 0o7777 == mode
    assert (shared / "some.db").stat().st_mode & 0o777 == 0o600
