"""The writer between a real log and a real database: each sample once, whatever dies when."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.counters import value_of
from tests.headend.eventlog.engines import alter
from tests.headend.storage.conftest import Query
from tests.headend.writing.making import T0_US, connection, entry, report, telemetry
from tests.waiting import PATIENCE_SECONDS, eventually

from derops.data_path import SharedFault
from derops.observability import Readiness
from derops.wire.v1 import log_pb2
from derops_headend.eventlog.sqlite import SqliteEventLog, SqliteLogReader
from derops_headend.storage import metrics
from derops_headend.storage.database import StoredCount, WriterDatabase
from derops_headend.writer import Writer, missing_ranges
from derops_headend.writing.notes import UNANSWERED_SECONDS, WriterNotes
from derops_headend.writing.rows import LogSource
from derops_headend.writing.word import WriterWord

PROGRAM = Path(sys.executable).parent / "derops-headend"
WAITING = (
    "select pid from pg_stat_activity where datname = current_database() "
    "and application_name = 'derops-writer' and wait_event_type = 'Lock'"
)

WRITERS = WAITING.partition(" and wait_event_type")[0]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteEventLog]:
    log = SqliteEventLog(tmp_path / "events.db")
    yield log
    log.close()


def samples(number: int, count: int = 10) -> log_pb2.LogEntry:
    """Return the samples of a range of seconds that no other number has."""
    values = [float(number * count + each) for each in range(count)]
    t0_us = T0_US + number * count * 1_000_000
    return telemetry({"active_power_watts": values}, t0_us=t0_us)


class Running:
    """A writer in a thread of the test."""

    def __init__(
        self,
        path: Path,
        connect: Callable[[str], WriterDatabase],
        stopping: threading.Event | None = None,
    ) -> None:
        self.readiness = Readiness()
        self.stopping = stopping or threading.Event()
        self.writer = Writer(
            open_log=lambda: SqliteLogReader(path),
            connect=connect,
            readiness=self.readiness,
            stopping=self.stopping,
        )
        self.thread = threading.Thread(target=self.writer.run)

    def __enter__(self) -> "Running":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self.thread.join()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@contextlib.contextmanager
def program(path: Path, url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``derops-headend writer`` and end it, whatever happens."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DEROPS_")}
    settings = {
        "DEROPS_WRITER_DATABASE_URL": url,
        "DEROPS_WRITER_DATA_DIRECTORY": str(path.parent),
        "DEROPS_WRITER_OPS_ADDRESS": "127.0.0.1",
        "DEROPS_WRITER_OPS_PORT": "0",
    }
    with subprocess.Popen([PROGRAM, "writer"], env=clean | settings) as running:
        try:
            yield running
        finally:
            running.kill()


RENEW = "UPDATE meta SET log_id = lower(hex(randomblob(16)))"
"""As docs/operations/event-log.md says it."""


def connector(url: str) -> Callable[[str], WriterDatabase]:
    return lambda log_id: WriterDatabase.connect(url, log_id)


@contextlib.contextmanager
def events_locked(url: str) -> Iterator[None]:
    """Hold a writer between its COPY and its commit."""
    with psycopg.connect(url) as holder:
        holder.execute("lock table dispatch_event in access exclusive mode")
        yield


def stored(query: Query) -> tuple[int, float]:
    ((count, total),) = query("select count(*), sum(active_power_watts) from telemetry")
    return count, total


EXPECTED = (50, sum(range(50)) * 1.0)


async def fill(log: SqliteEventLog) -> None:
    for number in range(5):
        await log.append([samples(number), connection()])
    await log.append([report("Acked", sequence=1)])


async def test_it_follows_the_log_and_trims_it(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    with Running(path, connector(database_url)) as running:
        eventually(lambda: running.readiness.report()[0], "readiness")
        await fill(log)
        eventually(lambda: log.bounds() == (6, 6), "trimmed log")
        await log.append([samples(5)])
        eventually(lambda: stored(query)[0] == 60, "later sample")

    assert query("select committed_offset from log_offset") == [(7,)]
    assert query("select count(*) from connection_event") == [(5,)]
    assert query("select count(*) from quarantine") == [(0,)]


async def test_its_metrics_say_since_when_it_is_behind_and_that_the_database_is_to_blame(
    log: SqliteEventLog, path: Path, database_url: str
) -> None:
    behind, failing = metrics.BEHIND_SECONDS.labels("0"), metrics.DATABASE_FAILING.labels("0")
    away = threading.Event()

    def connect(log_id: str) -> WriterDatabase:
        if away.is_set():
            raise psycopg.OperationalError("nobody answers")
        return WriterDatabase.connect(database_url, log_id)

    away.set()
    with Running(path, connect):
        eventually(lambda: value_of(failing) == 1, "the database to blame")
        eventually(lambda: value_of(behind) > 1, "more than a second behind")
        away.clear()
        await fill(log)
        eventually(lambda: value_of(failing) == 0, "the database back")
        eventually(lambda: value_of(behind) < 1, "all in the database")


class Pausing(threading.Event):
    """Notes when the writer pauses, and does something meanwhile."""

    def __init__(self, told: list[str], meanwhile: Callable[[], object]) -> None:
        super().__init__()
        self._told, self._meanwhile = told, meanwhile

    def wait(self, timeout: float | None = None) -> bool:
        self._told.append("pause")
        self._meanwhile()
        return super().wait(timeout)


class Telling(WriterDatabase):
    """Notes how much the writer stores at once, and does something meanwhile."""

    told: list[str]
    meanwhile: Callable[[], object]

    def store(self, sources: Sequence[LogSource], **how: Any) -> StoredCount:
        tally = super().store(sources, **how)
        self.told.append(f"{len(sources)} stored")
        self.meanwhile()
        return tally


def telling(url: str, told: list[str], meanwhile: Callable[[], object]) -> Callable[[str], Telling]:
    def connect(log_id: str) -> Telling:
        database = Telling.connect(url, log_id)
        database.told, database.meanwhile = told, meanwhile
        return database

    return connect


def test_what_comes_while_it_stores_little_waits_for_more(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    told: list[str] = []
    numbers = iter(range(12))

    def append_another() -> None:
        with contextlib.suppress(StopIteration):
            asyncio.run(log.append([samples(next(numbers))]))

    connect = telling(database_url, told, append_another)
    with Running(path, connect, Pausing(told, append_another)):
        eventually(lambda: stored(query)[0] == 120, "all samples")

    first = told.index("1 stored")
    assert told[first : first + 5] == ["1 stored", "pause", "2 stored", "pause", "2 stored"]


async def test_a_backlog_is_stored_without_a_pause(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    for _ in range(12):
        await log.append([entry(log_pb2.ENTRY_KIND_UNSPECIFIED, bytes(300_000))])
    told: list[str] = []

    connect = telling(database_url, told, lambda: None)
    with Running(path, connect, Pausing(told, lambda: None)):
        eventually(lambda: query("select count(*) from quarantine") == [(12,)], "all entries")

    assert told[:3] == ["4 stored", "4 stored", "4 stored"]


async def test_killed_between_copy_and_commit_it_stores_each_sample_once(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    await fill(log)
    with events_locked(database_url), program(path, database_url) as victim:
        eventually(lambda: query(WAITING), "writer in the middle")
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert stored(query)[0] == 0
    with program(path, database_url) as successor:
        eventually(lambda: query("select 1 from log_offset where committed_offset = 6"), "commit")
        successor.terminate()
        assert successor.wait(PATIENCE_SECONDS) == 0

    assert stored(query) == EXPECTED
    assert query("select count(*) from connection_event") == [(5,)]
    assert query("select count(*) from quarantine") == [(0,)]


async def test_cut_off_between_copy_and_commit_it_reconnects_and_stores_once(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    await fill(log)
    with Running(path, connector(database_url)) as running:
        with events_locked(database_url):
            eventually(lambda: query(WAITING), "writer in the middle")
            query(WAITING.replace("select pid", "select pg_terminate_backend(pid)"))
            eventually(
                lambda: "database" in running.readiness.report()[1], "word of what is missing"
            )
        eventually(lambda: stored(query)[0] == 50, "samples")
        eventually(lambda: running.readiness.report()[0], "readiness")

    assert stored(query) == EXPECTED


async def test_asked_to_stop_while_the_database_hangs_it_ends_in_time(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    await fill(log)
    with events_locked(database_url), program(path, database_url) as stuck:
        eventually(lambda: query(WAITING), "writer in the middle")
        stuck.terminate()
        assert stuck.wait(PATIENCE_SECONDS) == 0

    assert stored(query)[0] == 0
    assert log.bounds() == (1, 6)


class Deaf(WriterDatabase):
    """A connection that breaks after each commit, before anybody hears of it."""

    def store(
        self,
        sources: Sequence[LogSource],
        *,
        after: int,
        through: int,
        missing: Sequence[tuple[int, int]] = (),
    ) -> StoredCount:
        super().store(sources, after=after, through=through, missing=missing)
        raise psycopg.OperationalError("server closed the connection unexpectedly")


async def test_a_commit_whose_outcome_nobody_heard_of_is_not_made_twice(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    await fill(log)
    with Running(path, lambda log_id: Deaf.connect(database_url, log_id)):
        eventually(lambda: log.bounds() == (6, 6), "trimmed log")

    assert stored(query) == EXPECTED
    assert query("select count(*) from connection_event") == [(5,)]


async def test_two_writers_of_one_log_store_each_record_once(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    with Running(path, connector(database_url)), Running(path, connector(database_url)):
        for number in range(100):
            await log.append([samples(number, 1), connection()])
        eventually(lambda: query("select 1 from log_offset where committed_offset = 100"), "commit")

    assert stored(query) == (100, sum(range(100)) * 1.0)
    assert query("select count(*) from connection_event") == [(100,)]
    assert query("select count(*) from quarantine") == [(0,)]


async def test_it_waits_for_log_and_database_and_says_why(
    path: Path, database_url: str, query: Query
) -> None:
    nowhere = [True]

    def connect(log_id: str) -> WriterDatabase:
        if nowhere:
            return WriterDatabase.connect("postgresql://127.0.0.1:1/nowhere", log_id)
        return WriterDatabase.connect(database_url, log_id)

    with Running(path, connect) as running:
        eventually(lambda: "does not exist" in running.readiness.report()[1], "word of the log")
        log = SqliteEventLog(path)
        await fill(log)
        eventually(
            lambda: "Connection refused" in running.readiness.report()[1], "word of the server"
        )
        nowhere.clear()
        eventually(lambda: running.readiness.report()[0], "readiness")
        eventually(lambda: stored(query)[0] == 50, "samples")
    log.close()


async def test_a_damaged_record_stops_it_there_and_loses_nothing_before(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    await fill(log)
    alter(path, "UPDATE record SET checksum = 0 WHERE log_offset = 3")

    with Running(path, connector(database_url)) as running:
        eventually(lambda: "record 3" in running.readiness.report()[1], "word of the damage")

    assert stored(query)[0] == 20
    assert query("select committed_offset from log_offset") == [(2,)]


async def test_records_that_are_gone_are_an_alarm_and_on_record(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    await fill(log)
    alter(path, "DELETE FROM record WHERE log_offset IN (1, 2, 4)")

    with Running(path, connector(database_url)):
        eventually(
            lambda: query("select 1 from quarantine having count(*) = 2"), "record of the gap"
        )

    assert stored(query)[0] == 20
    assert query("select reason, detail from quarantine order by log_offset") == [
        ("RecordsMissing", "records 1 to 2 were not in the log"),
        ("RecordsMissing", "records 4 to 4 were not in the log"),
    ]


async def test_a_log_restored_from_a_backup_is_followed_from_its_own_end(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    await fill(log)
    database = WriterDatabase.connect(database_url, log.log_id)
    database.store([], after=0, through=100)
    database.close()

    with Running(path, connector(database_url)):
        eventually(lambda: query("select 1 from log_offset where committed_offset = 6"), "return")
        await log.append([samples(9)])
        eventually(lambda: stored(query)[0] == 10, "what came after")

    assert query("select detail from quarantine") == [("records 7 to 100 were not in the log",)]


async def test_a_restored_log_with_a_new_id_is_stored_whole_whatever_numbers_it_gives_again(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    await fill(log)
    with Running(path, connector(database_url)):
        eventually(lambda: stored(query)[0] == 50, "first samples")
    restored = path.with_name("restored.db")
    older = SqliteEventLog(restored)
    alter(restored, "UPDATE meta SET log_id = ?", log.log_id)
    await older.append([samples(0), connection()])
    alter(restored, RENEW)
    for number in range(5, 13):  # past what is stored of the lost log
        await older.append([samples(number)])

    with Running(restored, connector(database_url)):
        eventually(lambda: stored(query)[0] == 130, "all that the restored log has")
    older.close()

    assert query("select count(*) from quarantine") == [(0,)]


def test_missing_ranges() -> None:
    assert list(missing_ranges(0, [1, 2, 3])) == []
    assert list(missing_ranges(4, [7, 8, 10])) == [(5, 6), (9, 9)]


@pytest.mark.parametrize("url", ["nonsense secret", "postgresql://user:secret@[::1/x"])
def test_a_wrong_url_is_one_line_without_the_password(tmp_path: Path, url: str) -> None:
    result = subprocess.run(
        [PROGRAM, "writer"],
        env=os.environ
        | {"DEROPS_WRITER_DATABASE_URL": url, "DEROPS_WRITER_DATA_DIRECTORY": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert result.returncode == 2
    assert "DEROPS_WRITER_DATABASE_URL" in result.stderr
    assert "secret" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_database_of_a_newer_program_is_refused_with_both_versions(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    query("insert into schema_version (version) values (99) returning version")
    settings = {
        "DEROPS_WRITER_DATABASE_URL": database_url,
        "DEROPS_WRITER_DATA_DIRECTORY": str(path.parent),
        "DEROPS_WRITER_OPS_ADDRESS": "127.0.0.1",
        "DEROPS_WRITER_OPS_PORT": "0",
    }

    done = subprocess.run(
        [PROGRAM, "writer"],
        env=os.environ | settings,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("cannot start: database can be used by programs of schema version 99 or")
    assert "Traceback" not in done.stderr


def fault_of(running: Running) -> SharedFault | None:
    """Return what the writer says is broken."""
    word = running.writer.notes.take_word()
    return word.fault if word is not None else None


def waiting_word(running: Running) -> WriterWord | None:
    """Return its word, if it says that something waits."""
    word = running.writer.notes.take_word()
    return word if word is not None and word.waiting_since_us else None


async def test_its_word_says_what_is_stored_and_which_fault_the_database_has(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    where = [database_url]
    with Running(path, lambda log_id: WriterDatabase.connect(where[0], log_id)) as running:
        await fill(log)
        eventually(lambda: running.writer.notes.committed == 6, "word of what is stored")
        assert fault_of(running) is None

        where[0] = "postgresql://127.0.0.1:1/nowhere"
        query(WRITERS.replace("select pid", "select pg_terminate_backend(pid)"))
        await log.append([samples(7)])
        eventually(lambda: fault_of(running) is SharedFault.DATABASE_UNREACHABLE, "its fault")
        word = eventually(lambda: waiting_word(running), "word of what waits")
        assert (word.committed, word.last) == (6, 7)
        assert "refused" in word.message
        assert word.since_us > 0

        where[0] = database_url
        eventually(lambda: running.writer.notes.committed == 7, "what came meanwhile")
        eventually(lambda: fault_of(running) is None, "the end of the fault")


async def test_its_word_names_a_damaged_record(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    await fill(log)
    alter(path, "UPDATE record SET checksum = 0 WHERE log_offset = 3")

    with Running(path, connector(database_url)) as running:
        eventually(lambda: fault_of(running) is SharedFault.LOG_DAMAGED, "word of the damage")
        eventually(lambda: running.writer.notes.committed == 2, "what lies before it")


async def test_a_call_that_does_not_return_is_a_fault_of_the_database() -> None:
    now = [100.0]
    notes = WriterNotes(0, "w", lambda: 1, lambda: now[0])

    with notes.asking():
        assert notes.take_word() is None  # nothing is known yet
        now[0] += UNANSWERED_SECONDS
        word = notes.take_word()
        assert word is not None
        assert word.fault is SharedFault.DATABASE_FAILING
    notes.note_place(1, 1, 0)
    word = notes.take_word()
    assert word is not None
    assert word.fault is None
    assert notes.take_word() is None  # nothing new
    with notes.asking():
        assert notes.take_word() is not None  # it works, and has not returned yet
