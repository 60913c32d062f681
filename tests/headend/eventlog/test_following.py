"""Writers of a log with shards, several of them, and the repair; on real servers."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import nats
import psycopg
import pytest
from tests.counters import value_of
from tests.headend.eventlog.engines import MAX_BYTES, alter
from tests.headend.writing.making import T0_US, telemetry
from tests.stack import places
from tests.stack.nats import NatsServer
from tests.stack.postgres import PostgresServer
from tests.stack.processes import http_ok
from tests.waiting import PATIENCE_SECONDS, eventually

from derops.errors import SettingError
from derops.observability import Readiness
from derops.wire.v1 import dispatch_pb2, log_pb2
from derops_headend import writer
from derops_headend.eventlog.engines import parse_shards
from derops_headend.eventlog.jetstream import JetStreamEventLog
from derops_headend.eventlog.ports import LogReader
from derops_headend.eventlog.sqlite import SqliteEventLog, SqliteLogReader
from derops_headend.eventlog.streams import JetStreamSettings, shard_of
from derops_headend.programs.writer import choose_shards
from derops_headend.storage import metrics
from derops_headend.storage.database import WriterDatabase
from derops_headend.writer import TAKE_OVER_SECONDS, Writer

PROGRAM = Path(sys.executable).parent / "derops-headend"
SHARDS = 3
ASSETS = 14

Query = Callable[..., list[tuple[Any, ...]]]
_databases = itertools.count(1)


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    name = f"following_{next(_databases)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture
def query(database_url: str) -> Iterator[Query]:
    WriterDatabase.connect(database_url, "none").close()
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield lambda text, *values: connection.execute(text.encode(), values or None).fetchall()


@pytest.fixture
def server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events.db"


@pytest.fixture
def log(path: Path) -> Iterator[SqliteEventLog]:
    log = SqliteEventLog(path)
    yield log
    log.close()


def sample(number: int) -> log_pb2.LogEntry:
    """Return one sample of one of some assets."""
    uid = f"uid-{number % ASSETS}"
    asset = dispatch_pb2.AssetId(uid=uid, namespace="site", name=uid)
    values = {"active_power_watts": [float(number)]}
    return telemetry(values, t0_us=T0_US + number * 1_000_000, asset=asset)


def environment(url: str, **settings: str) -> Mapping[str, str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DEROPS_")}
    own = {
        "DATABASE_URL": url,
        "OPS_ADDRESS": "127.0.0.1",
        "OPS_PORT": "0",
    } | settings
    return clean | {f"DEROPS_WRITER_{name}": value for name, value in own.items()}


@contextlib.contextmanager
def program(url: str, **settings: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run ``derops-headend writer`` and end it, whatever happens."""
    with subprocess.Popen([PROGRAM, "writer"], env=environment(url, **settings)) as running:
        try:
            yield running
        finally:
            running.kill()


def run(*arguments: str, url: str, **settings: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROGRAM, *arguments],
        env=environment(url, **settings),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def readyz(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
            text: str = answer.read().decode()
    except urllib.error.HTTPError as error:
        text = error.read().decode()
    return text


async def open_log(server: NatsServer) -> JetStreamEventLog:
    where = JetStreamSettings(url=server.url)
    return await JetStreamEventLog.open(where, shards=SHARDS, max_bytes=MAX_BYTES)


def stored(query: Query) -> tuple[int, float]:
    ((count, total),) = query("select count(*), sum(active_power_watts) from telemetry")
    return count, total


async def test_one_writer_follows_every_shard_that_there_is(
    server: NatsServer, database_url: str, query: Query
) -> None:
    log = await open_log(server)
    port = str(places.free_port())
    with program(database_url, EVENT_LOG=server.url, OPS_PORT=port) as running:
        for number in range(70):
            await log.append([sample(number)])
        eventually(lambda: stored(query) == (70, sum(range(70)) * 1.0), "sample of each shard")
        eventually(http_ok(f"http://127.0.0.1:{port}/readyz"), "readiness")
        running.terminate()
        assert running.wait(PATIENCE_SECONDS) == 0
    await log.close()

    assert query("select shard from log_offset order by 1") == [(0,), (1,), (2,)]


async def test_writers_share_the_shards_and_outlive_kills(
    server: NatsServer, database_url: str, query: Query
) -> None:
    log = await open_log(server)
    with program(database_url, EVENT_LOG=server.url, SHARDS="1,2"):
        with program(database_url, EVENT_LOG=server.url, SHARDS="0") as victim:
            for number in range(70):
                await log.append([sample(number)])
            eventually(
                lambda: query("select 1 from log_offset where shard = 0"), "sample of shard 0"
            )
            victim.send_signal(signal.SIGKILL)
        for number in range(70, 140):
            await log.append([sample(number)])
        mine = [n for n in range(140) if shard_of(f"uid-{n % ASSETS}", SHARDS) != 0]
        eventually(lambda: stored(query)[0] >= len(mine), "samples of the other shards")
        with program(database_url, EVENT_LOG=server.url, SHARDS="0"):
            eventually(lambda: stored(query)[0] == 140, "samples of shard 0")
    await log.close()

    assert stored(query) == (140, sum(range(140)) * 1.0)
    assert query("select count(*) from quarantine") == [(0,)]


def test_a_writer_that_is_first_waits_for_server_and_streams(
    server: NatsServer, database_url: str
) -> None:
    port = places.free_port()
    with program(database_url, EVENT_LOG=server.url, OPS_PORT=str(port)) as running:
        eventually(http_ok(f"http://127.0.0.1:{port}/livez"), "life")
        eventually(lambda: "DEROPS_LOG_0 does not exist" in readyz(port), "word of the stream")
        running.terminate()
        assert running.wait(PATIENCE_SECONDS) == 0


async def test_a_shard_that_the_log_does_not_have_is_refused_in_one_line(
    server: NatsServer, database_url: str
) -> None:
    await (await open_log(server)).close()

    done = run("writer", url=database_url, EVENT_LOG=server.url, SHARDS="0,5")

    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "cannot start: setting DEROPS_WRITER_SHARDS (environment): "
        "the event log has 3 shards, from 0 on: 5 is not among them"
    )


async def test_a_stream_that_no_gateway_made_is_refused_in_one_line(
    server: NatsServer, database_url: str
) -> None:
    connection = await nats.connect(server.url)
    await connection.jetstream().add_stream(name="DEROPS_LOG_0", subjects=["DEROPS_LOG_0"])
    await connection.close()

    done = run("writer", url=database_url, EVENT_LOG=server.url)

    assert done.returncode == 2
    assert "DEROPS_WRITER_EVENT_LOG" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_shards_are_all_or_those_that_are_named() -> None:
    assert list(choose_shards(parse_shards("all"), 3)) == [0, 1, 2]
    assert list(choose_shards(parse_shards("2, 0,2"), 3)) == [0, 2]
    with pytest.raises(SettingError, match="1 is not among them"):
        choose_shards((1,), 1)
    for wrong in ("", "one", "0,,1", "64", "-1"):
        with pytest.raises(ValueError, match="is not all, nor numbers from 0 to 63"):
            parse_shards(wrong)


class Running:
    """A writer in a thread of the test."""

    def __init__(
        self, path: Path, url: str, open_log: Callable[[], LogReader] | None = None
    ) -> None:
        self.readiness = Readiness()
        self.stopping = threading.Event()
        self.connections = 0

        def connect(log_id: str) -> WriterDatabase:
            self.connections += 1
            return WriterDatabase.connect(url, log_id)

        self.writer = Writer(
            open_log=open_log or (lambda: SqliteLogReader(path)),
            connect=connect,
            readiness=self.readiness,
            stopping=self.stopping,
        )
        self.thread = threading.Thread(target=self.writer.run)

    def __enter__(self) -> "Running":
        self.thread.start()
        return self

    def stop(self) -> None:
        self.stopping.set()
        self.thread.join()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def stands_by(self) -> bool:
        return "stands by" in self.readiness.report()[1]


async def test_of_two_writers_one_stands_by_and_takes_over(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    with Running(path, database_url) as one, Running(path, database_url) as other:
        numbers = itertools.count()
        begun = time.monotonic()
        while not (one.stands_by or other.stands_by):
            assert time.monotonic() - begun < PATIENCE_SECONDS
            await log.append([sample(next(numbers))])
        active, waiting = (other, one) if one.stands_by else (one, other)
        connections = active.connections, waiting.connections
        for _ in range(200):
            await log.append([sample(next(numbers))])
        assert waiting.stands_by
        assert waiting.readiness.report()[0], "who stands by is ready: a rollout goes on"
        assert (active.connections, waiting.connections) == connections, "nobody begins again"

        active.stop()
        stopped = time.monotonic()
        await log.append([sample(next(numbers))])
        last = next(numbers)
        eventually(lambda: stored(query)[0] == last, "samples of the successor")
        assert time.monotonic() - stopped < TAKE_OVER_SECONDS + 20
        eventually(lambda: not waiting.stands_by, "word of the successor")

    assert stored(query) == (last, sum(range(last)) * 1.0)
    assert query("select count(*) from quarantine") == [(0,)]


class Slow(SqliteLogReader):
    """A log that trims one record at a time."""

    def trim(self, through: int) -> None:
        super().trim(min(through, self.bounds()[0]))


async def test_trimming_goes_on_until_all_that_is_stored_is_trimmed(
    log: SqliteEventLog, path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30):
        await log.append([sample(number)])
    monkeypatch.setattr(writer, "TRIM_SECONDS", time.monotonic() / 2)  # once, as far as we wait

    with Running(path, database_url, open_log=lambda: Slow(path)):
        eventually(lambda: log.bounds() == (30, 30), "trimmed log")


async def test_a_damaged_record_is_skipped_by_its_number_only_and_its_bytes_are_kept(
    log: SqliteEventLog, path: Path, database_url: str, query: Query
) -> None:
    for number in range(4):
        await log.append([sample(number)])
    body = log.raw(3)
    alter(path, "UPDATE record SET checksum = 0 WHERE log_offset = 3")
    settings = {"DATA_DIRECTORY": str(path.parent)}

    def skip(record: int) -> "subprocess.CompletedProcess[str]":
        return run("skip-record", "--record", str(record), url=database_url, **settings)

    early = skip(3)
    with Running(path, database_url) as running:
        eventually(lambda: "record 3" in running.readiness.report()[1], "word of the damage")
        assert value_of(metrics.LOG_DAMAGED.labels("0")) == 1
        wrong = [skip(2), skip(4)]
        assert query("select committed_offset from log_offset") == [(2,)]
        right = skip(3)
        eventually(lambda: stored(query) == (3, 0.0 + 1.0 + 3.0), "what comes after")
        eventually(lambda: running.readiness.report()[0], "readiness")
        assert value_of(metrics.LOG_DAMAGED.labels("0")) == 0

    assert (early.returncode, [each.returncode for each in wrong]) == (1, [1, 1])
    assert "the writer has come to record 0, it does not stand at 3" in early.stderr
    assert all(each.stderr.startswith("not skipped: record") for each in wrong)
    assert right.returncode == 0, right.stderr
    assert query("select log_offset, reason, body from quarantine") == [(3, "Damaged", body)]
