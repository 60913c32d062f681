"""The model of a disk: what was synced is there, and whatever else may happen does happen."""

import random
from pathlib import Path

import pytest
from tests.powerloss.disk import Disk, Image, read_folder
from tests.powerloss.recording import Kind, Operation, read, run

ROOT = Path("/nowhere")


def make(inode: int, name: str) -> Operation:
    return Operation(Kind.CREATE, f"{ROOT}/{name}", inode, 0, b"")


def write(inode: int, data: bytes, at: int = 0) -> Operation:
    return Operation(Kind.WRITE, "", inode, at, data)


def sync(inode: int) -> Operation:
    return Operation(Kind.SYNC, "", inode, 0, b"")


def rename(old: str, new: str) -> Operation:
    return Operation(Kind.RENAME, f"{ROOT}/{old}", 0, 0, f"{ROOT}/{new}".encode())


def unlink(name: str) -> Operation:
    return Operation(Kind.UNLINK, f"{ROOT}/{name}", 0, 0, b"")


def outcomes(folder: Path, operations: list[Operation], *, strict: bool) -> list[Image]:
    """Return all that turned up in many losses of power at the end, each once."""
    disk = Disk(folder)
    for operation in operations:
        disk.apply(_below(folder, operation))
    found: list[Image] = []
    for seed in range(400):
        image = disk.crash(random.Random(seed), strict=strict)
        if image not in found:
            found.append(image)
    return found


def _below(folder: Path, operation: Operation) -> Operation:
    path, data = (
        text.replace(str(ROOT), str(folder)) for text in (operation.path, operation.data.decode())
    )
    inode = operation.inode or folder.stat().st_ino
    return Operation(operation.kind, path, inode, operation.offset, data.encode())


FOLDER = 0
NEW = [make(1, "a"), write(1, b"one"), sync(1)]


@pytest.mark.parametrize("strict", [False, True])
def test_what_was_synced_with_its_directory_is_there_alone(tmp_path: Path, strict: bool) -> None:
    assert outcomes(tmp_path, [*NEW, sync(FOLDER)], strict=strict) == [{"a": b"one"}]


def test_a_new_file_outlives_its_sync_and_only_strictly_may_lose_its_name(tmp_path: Path) -> None:
    assert outcomes(tmp_path, NEW, strict=False) == [{"a": b"one"}]
    assert {tuple(each) for each in outcomes(tmp_path, NEW, strict=True)} == {(), ("a",)}


def test_what_was_not_synced_is_there_or_not_or_is_zeros(tmp_path: Path) -> None:
    found = outcomes(tmp_path, [*NEW, sync(FOLDER), write(1, b"two", 3)], strict=True)

    assert {each["a"] for each in found} == {b"one", b"onetwo", b"one\0\0\0"}


def test_a_write_is_torn_between_sectors_and_never_within(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"-" * 2048)
    found = outcomes(
        tmp_path, [write((tmp_path / "a").stat().st_ino, b"x" * 1024, 256)], strict=False
    )

    torn = {each["a"] for each in found}
    parts = [(first, middle, last) for first in "-x" for middle in "-x" for last in "-x"]
    assert torn == {
        f"{'-' * 256}{first * 256}{middle * 512}{last * 256}{'-' * 768}".encode()
        for first, middle, last in parts
    }


def test_names_reach_a_journal_in_order_and_strictly_in_any(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    changes = [rename("a", "c"), unlink("b")]

    journaled = {tuple(each) for each in outcomes(tmp_path, changes, strict=False)}
    strict = {tuple(each) for each in outcomes(tmp_path, changes, strict=True)}

    assert journaled == {("a", "b"), ("b", "c"), ("c",)}
    assert strict == journaled | {("a",)}


def test_the_recorder_sees_all_that_happens_to_files(tmp_path: Path) -> None:
    folder, journal = tmp_path / "files", tmp_path / "journal"
    folder.mkdir()
    disk = Disk(folder)
    program = """
import os, pathlib, sqlite3, sys
folder = pathlib.Path(sys.argv[1])
(folder / "sub").mkdir()
with (folder / "sub" / "text").open("wb") as file:
    file.write(b"x" * 100_000)
    file.truncate(70_000)
with (folder / "sub" / "text").open("ab") as file:
    file.write(b"more")
(folder / "sub" / "text").rename(folder / "sub" / "renamed")
(folder / "gone").write_text("gone")
(folder / "gone").unlink()
database = sqlite3.connect(folder / "some.db", isolation_level=None)
database.execute("PRAGMA journal_mode = WAL")
database.execute("CREATE TABLE t (x)")
database.executemany("INSERT INTO t VALUES (?)", [(os.urandom(100),) for _ in range(1000)])
os._exit(0)
"""
    run(["-c", program, str(folder)], folder, journal)
    operations = read(journal)
    for operation in operations:
        disk.apply(operation)

    assert disk.whole() == read_folder(folder)
    assert {each.kind for each in operations} == set(Kind) - {Kind.TELL}
    assert sum(each.kind is Kind.SYNC for each in operations) > 1000
