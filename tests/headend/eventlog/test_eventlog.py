"""What SQLite adds to the contract of an event log, on real files."""

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest
from tests.counters import value_of
from tests.headend.eventlog.appender import FAILED

from derops.errors import LogDamagedError, SchemaTooNewError
from derops.wire.v1 import log_pb2
from derops_headend.eventlog import metrics
from derops_headend.eventlog.ports import LogFullError, LogMissingError, LogReader
from derops_headend.eventlog.records import MAX_RECORD_BYTES
from derops_headend.eventlog.sqlite import (
    SqliteEventLog,
    SqliteLogReader,
)


def entry(body: bytes) -> log_pb2.LogEntry:
    return log_pb2.LogEntry(kind=log_pb2.TELEMETRY, received_us=1, body=body)


def bodies(log: LogReader, after: int = 0) -> list[bytes]:
    found: list[bytes] = []
    while records := log.read(after):
        found += [each.body for record in records for each in record.record.entries]
        after = records[-1].offset
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def log(path: Path) -> Iterator[SqliteEventLog]:
    log = SqliteEventLog(path)
    yield log
    log.close()


@contextmanager
def small_disk(place: Path, *, megabytes: int) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


@contextmanager
def appender(path: Path, **environment: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run an appender and end it, whatever happens."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.headend.eventlog.appender", str(path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(["headend", "."])} | environment,
        stdout=subprocess.PIPE,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def damage(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


async def test_close_commits_what_was_accepted_and_refuses_the_rest(path: Path) -> None:
    log = SqliteEventLog(path)
    accepted = [asyncio.create_task(log.append([entry(b"%d" % n)])) for n in range(50)]
    await asyncio.sleep(0)
    log.close()

    await asyncio.gather(*accepted)
    reader = SqliteLogReader(path)
    assert len(bodies(reader)) == 50
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        await log.append([entry(b"late")])


async def test_a_failed_commit_reaches_all_of_its_callers_and_the_log_goes_on(
    log: SqliteEventLog, path: Path
) -> None:
    damage(path, "CREATE TRIGGER full BEFORE INSERT ON record BEGIN SELECT raise(ABORT, 'x'); END")
    failed = await asyncio.gather(
        *(log.append([entry(b"lost")]) for _ in range(3)), return_exceptions=True
    )
    damage(path, "DROP TRIGGER full")
    await log.append([entry(b"kept")])

    assert all(isinstance(error, sqlite3.Error) for error in failed)
    assert bodies(log) == [b"kept"]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE record SET body = zeroblob(length(body)) WHERE log_offset = 2",
        "UPDATE record SET body = substr(body, 1, 3) WHERE log_offset = 2",
        "UPDATE record SET checksum = checksum + 1 WHERE log_offset = 2",
        "UPDATE record SET body = r.body, checksum = r.checksum FROM "
        "(SELECT * FROM record WHERE log_offset = 1) r WHERE record.log_offset = 2",
    ],
    ids=["overwritten", "cut short", "checksum", "another record in its place"],
)
async def test_a_damaged_record_is_named_and_nothing_after_it_is_read(
    log: SqliteEventLog, path: Path, statement: str
) -> None:
    for name in (b"first", b"second", b"third"):
        await log.append([entry(name)])
    damage(path, statement)

    assert [record.offset for record in log.read(0)] == [1]
    with pytest.raises(LogDamagedError, match="record 2") as caught:
        log.read(1)
    assert caught.value.offset == 2


async def test_a_log_of_a_newer_program_is_refused(path: Path) -> None:
    SqliteEventLog(path).close()
    damage(path, "PRAGMA user_version = 99")

    with pytest.raises(SchemaTooNewError):
        SqliteEventLog(path)
    with pytest.raises(SchemaTooNewError):
        SqliteLogReader(path)


def test_a_reader_never_makes_the_log(path: Path) -> None:
    with pytest.raises(LogMissingError):
        SqliteLogReader(path)
    assert not path.exists()
    path.touch()
    with pytest.raises(LogMissingError):
        SqliteLogReader(path)


async def test_the_file_is_set_up_for_durable_large_records(
    log: SqliteEventLog, path: Path
) -> None:
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA page_size").fetchone() == (16384,)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert log._appending.execute("PRAGMA synchronous").fetchone() == (2,)


def test_what_was_acknowledged_outlives_kill_9(path: Path) -> None:
    acknowledged: list[bytes] = []
    for _ in range(4):
        with appender(path) as running:
            assert running.stdout is not None
            lines = [running.stdout.readline() for _ in range(150)]
            running.send_signal(signal.SIGKILL)
            lines += running.stdout.readlines()
        # The last line may be torn by the kill.
        acknowledged += [line.strip() for line in lines if line.endswith(b"\n")]

    log = SqliteEventLog(path)
    held = bodies(log)
    first, last = log.bounds()
    log.close()
    assert set(acknowledged) <= set(held)
    assert len(held) == len(set(held))
    assert (first, len(acknowledged) >= 600, last > 0) == (1, True, True)


async def test_a_log_at_its_bound_refuses_and_takes_more_once_it_was_trimmed(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("derops_headend.eventlog.sqlite._MEASURE_SECONDS", 0.0)
    log = SqliteEventLog(path, max_bytes=4 * 1024 * 1024)

    async def append_until_full() -> None:
        for number in range(1000):
            await log.append([entry(b"%04d" % number + bytes(MAX_RECORD_BYTES // 2))])

    with pytest.raises(LogFullError, match="4194304 bytes"):
        await append_until_full()
    held = bodies(log)
    with pytest.raises(LogFullError):
        await log.append([entry(b"refused")])
    assert bodies(log) == held

    log.trim(log.bounds()[1] - 2)
    await log.append([entry(b"taken")])
    await log.append([entry(b"too")])
    assert log.fill() < 0.5
    log.close()


async def test_the_oldest_are_dropped_and_counted_only_where_that_was_chosen(path: Path) -> None:
    log = SqliteEventLog(path, max_bytes=4 * 1024 * 1024, drop_oldest=True)
    before = value_of(metrics.LOG_RECORDS_DROPPED)
    for number in range(60):
        await log.append([entry(b"%04d" % number + bytes(MAX_RECORD_BYTES // 2))])

    held = [int(body[:4]) for body in bodies(log)]
    first, last = log.bounds()

    assert held == list(range(held[0], 60))
    assert (last, held[0] > 20, log.fill()) == (60, True, 0.0)
    assert value_of(metrics.LOG_RECORDS_DROPPED) - before == first - 1
    log.close()


async def test_trimming_gives_the_space_back(path: Path) -> None:
    log = SqliteEventLog(path)
    for _ in range(300):
        await log.append([entry(os.urandom(MAX_RECORD_BYTES))])
    log.close()
    grown = path.stat().st_size

    log = SqliteEventLog(path)
    log.trim(log.bounds()[1])
    await log.append([entry(b"next")])
    log.close()

    assert path.stat().st_size < grown / 4


async def test_a_full_disk_refuses_and_is_got_over(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", megabytes=8) as disk:
        log = SqliteEventLog(disk / "events.db")
        filler = disk / "filler"
        filler.write_bytes(bytes(6 * 1024 * 1024))
        taken = 0

        async def append_until_full() -> None:
            nonlocal taken
            while True:
                await log.append([entry(b"%04d" % taken + bytes(MAX_RECORD_BYTES))])
                taken += 1

        with pytest.raises(sqlite3.OperationalError):
            await append_until_full()
        held = bodies(log)
        assert [int(body[:4]) for body in held] == list(range(taken))

        filler.unlink()
        await log.append([entry(b"%04d" % taken)])

        assert int(bodies(log)[-1]) == taken
        log.close()


async def test_a_disk_that_fails_a_write_is_got_over(log: SqliteEventLog, path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    taken = 0

    async def append_until_it_fails() -> None:
        nonlocal taken
        while True:
            await log.append([entry(b"%04d" % taken + bytes(MAX_RECORD_BYTES))])
            taken += 1

    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 1024 * 1024, hard))
    try:
        with pytest.raises(sqlite3.OperationalError, match="disk I/O error"):
            await append_until_it_fails()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    await log.append([entry(b"%04d" % taken)])

    assert [int(body[:4]) for body in bodies(log)] == list(range(taken + 1))


def read_until(output: IO[bytes], wanted: Callable[[bytes], bool], count: int) -> list[bytes]:
    """Return the lines up to the ``count``-th that is wanted."""
    lines: list[bytes] = []
    while sum(map(wanted, lines)) < count:
        line = output.readline()
        assert line, "the appender ended"
        lines.append(line)
    return lines


def test_a_failed_fsync_is_never_acknowledged_and_got_over(tmp_path: Path) -> None:
    library, sign, path = tmp_path / "failing.so", tmp_path / "fail", tmp_path / "events.db"
    source = Path(__file__).with_name("failing_fsync.c")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    preload = {"LD_PRELOAD": str(library), "FAIL_FSYNC": str(sign)}
    with appender(path, **preload) as running:
        assert running.stdout is not None
        lines = read_until(running.stdout, lambda line: line != FAILED, 100)
        sign.touch()
        read_until(running.stdout, lambda line: line == FAILED, 1)
        failing = read_until(running.stdout, lambda line: line == FAILED, 100)
        sign.unlink()
        lines += read_until(running.stdout, lambda line: line != FAILED, 100)
        running.send_signal(signal.SIGKILL)

    assert set(failing) == {FAILED}
    log = SqliteEventLog(path)
    held = bodies(log)
    log.close()
    assert {line.strip() for line in lines} - {FAILED.strip()} <= set(held)
    assert len(held) == len(set(held))


async def test_the_share_that_is_taken_is_known_while_the_disk_fails(
    log: SqliteEventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("derops_headend.eventlog.sqlite._MEASURE_SECONDS", 0.0)
    known = log.fill()
    log._connection.close()

    assert log.fill() == known


async def test_a_log_from_before_space_was_given_back_is_accepted(path: Path) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    for statement in (
        "PRAGMA auto_vacuum = NONE",
        "PRAGMA journal_mode = WAL",
        "CREATE TABLE meta (log_id TEXT NOT NULL) STRICT",
        "CREATE TABLE record (log_offset INTEGER PRIMARY KEY, checksum INTEGER NOT NULL, "
        "body BLOB NOT NULL) STRICT",
        "INSERT INTO meta VALUES ('old')",
        "PRAGMA user_version = 1",
    ):
        connection.execute(statement)
    connection.close()

    log = SqliteEventLog(path)
    await log.append([entry(b"a")])
    await log.append([entry(b"b")])
    log.trim(1)

    assert (log.log_id, bodies(log)) == ("old", [b"b"])
    log.close()


async def test_a_backlog_leaves_no_great_wal_behind(log: SqliteEventLog, path: Path) -> None:
    # A reader in the middle of the log keeps the WAL from being used again.
    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM record").fetchone()
    wal = path.with_name("events.db-wal")
    for _ in range(400):
        await log.append([entry(bytes(MAX_RECORD_BYTES))])
    assert wal.stat().st_size > 90 * 1024 * 1024
    reader.close()

    for _ in range(200):
        await log.append([entry(bytes(MAX_RECORD_BYTES))])

    assert wal.stat().st_size <= 64 * 1024 * 1024
