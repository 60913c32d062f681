"""What a newer program wrote is used where its note lets this program, and refused where not."""

import asyncio
import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nats
import pytest
from tests.agent.fakes import FakeListener
from tests.headend.eventlog.conftest import nats_server
from tests.headend.eventlog.engines import MAX_BYTES
from tests.headend.eventlog.test_contract import entry
from tests.stack.nats import NatsServer

from derops.errors import SchemaTooNewError
from derops.ids import AssetName
from derops.sqlite import Schema
from derops.wire.v1 import agent_pb2
from derops_agent.asset import ledger
from derops_agent.asset.ledger import Ledger
from derops_agent.ports import Reading
from derops_agent.storage import open_database
from derops_agent.telemetry import outbox_store
from derops_agent.telemetry.outbox_store import OutboxStore
from derops_headend.api.audit import file as audit_file
from derops_headend.api.audit.file import AuditFile
from derops_headend.eventlog import sqlite as event_log
from derops_headend.eventlog.jetstream import (
    JetStreamEventLog,
    JetStreamLogReader,
    JetStreamSettings,
)
from derops_headend.eventlog.sqlite import SqliteEventLog, SqliteLogReader
from derops_headend.eventlog.streams import FORMAT
from derops_headend.fleet.desired import Revision, Snapshot
from derops_headend.gateway import desired_store
from derops_headend.gateway.desired_store import DesiredStore

__all__ = ["nats_server"]
NOW = datetime(2026, 11, 1, tzinfo=UTC)


def use_ledger(path: Path) -> None:
    opened = Ledger(path)
    before = opened.next_epoch(0)
    opened.save([], alive=opened.alive, revision=agent_pb2.Revision(counter=7))
    opened.close()
    again = Ledger(path)
    assert (again.revision.counter, again.next_epoch(0)) == (7, before + 1)
    again.close()


def use_outbox(path: Path) -> None:
    store = OutboxStore(path)
    outbox = store.open(AssetName("pilot-north", "battery-7"), FakeListener())
    outbox.add(Reading(at_us=1_700_000_006_000_000, values={1: 5006.0}))
    store.flush()
    assert len(list(outbox.read(0, 100))) == 1
    store.close()


def use_desired_state(path: Path) -> None:
    revision = Revision(era=0, operator_start_ms=5, version=1)
    store = DesiredStore(path, 1)
    asyncio.run(store.replace(Snapshot(revision=revision, assets=(), dispatches=())))
    store.close()
    again = DesiredStore(path, 1)
    loaded = again.load()
    assert loaded is not None
    assert loaded[0].revision == revision
    again.close()


def use_event_log(path: Path) -> None:
    log = SqliteEventLog(path)
    asyncio.run(log.append([entry(b"one")]))
    reader = SqliteLogReader(path)
    assert len(reader.read(0)) == 1
    reader.close()
    log.close()


STORES: list[tuple[str, Callable[[Path], None], Schema]] = [
    ("ledger", use_ledger, ledger.SCHEMA),
    ("outbox", use_outbox, outbox_store.SCHEMA),
    ("desired", use_desired_state, desired_store.SCHEMA),
    ("events", use_event_log, event_log.SCHEMA),
]
STORE_IDS = [name for name, _, _ in STORES]


def change(path: Path, later: Schema) -> None:
    """Change a file as a newer program would: a table and a column more, and its note."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE later (what TEXT) STRICT")
        tables = connection.execute(
            "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN "
            "('later', 'schema_note')"
        ).fetchall()
        for (table,) in tables:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN later INTEGER DEFAULT 0")
        for statement in later.note():
            connection.execute(statement)


def version_of(path: Path) -> tuple[Any, ...]:
    with closing(sqlite3.connect(path)) as connection:
        row: tuple[Any, ...] = connection.execute("SELECT version FROM schema_note").fetchone()
        return row


def content_of(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return [*connection.iterdump(), str(connection.execute("PRAGMA user_version").fetchone())]


@pytest.mark.parametrize(("name", "use", "schema"), STORES, ids=STORE_IDS)
def test_a_file_whose_note_allows_this_version_is_used_and_keeps_its_note(
    tmp_path: Path, name: str, use: Callable[[Path], None], schema: Schema
) -> None:
    path = tmp_path / "made" / f"{name}.db"
    path.parent.mkdir()
    make(path, use)
    later = Schema(schema.version + 2, readable_from=schema.version)
    change(path, later)

    use(path)

    assert version_of(path) == (later.version,)


@pytest.mark.parametrize(("name", "use", "schema"), STORES, ids=STORE_IDS)
def test_a_file_whose_note_does_not_is_refused_in_one_line_that_says_which_version_can(
    tmp_path: Path, name: str, use: Callable[[Path], None], schema: Schema
) -> None:
    path = tmp_path / f"{name}.db"
    make(path, use)
    change(path, Schema(schema.version + 3, readable_from=schema.version + 1))
    before = content_of(path)

    with pytest.raises(SchemaTooNewError) as caught:
        use(path)

    words = (
        f"{path} can be used by programs of schema version {schema.version + 1} or newer, "
        f"and this one has {schema.version}: run a newer program, or restore a backup"
    )
    assert str(caught.value).startswith(words)
    assert "\n" not in str(caught.value)
    assert content_of(path) == before


def make(path: Path, use: Callable[[Path], None]) -> None:
    """Make a file, and move what its log has into it: the tests look at the file alone."""
    use(path)
    if path.name == "outbox.db":  # as an agent begins
        path.unlink()
        OutboxStore(path).close()
    if path.name == "events.db":
        path.unlink()
        SqliteEventLog(path).close()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def test_a_file_of_a_version_before_notes_gets_one_with_what_is_new(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    open_database(path, "CREATE TABLE t (a INTEGER) STRICT", Schema(1, readable_from=1)).close()

    later = Schema(2, readable_from=1)
    added = "ALTER TABLE t ADD COLUMN b INTEGER"
    open_database(path, "", later, [added]).close()
    again = open_database(path, "", later, [added])

    assert again.execute("PRAGMA user_version").fetchone() == (1,)
    assert again.execute("SELECT b FROM t").fetchall() == []
    again.close()
    assert version_of(path) == (2,)


@pytest.mark.parametrize(
    ("notes", "is_used"),
    [
        ({"format": str(FORMAT), "version": "7"}, True),
        ({"format": str(FORMAT + 1), "version": "7"}, False),
    ],
    ids=["allowed", "not allowed"],
)
async def test_streams_of_a_newer_gateway(
    nats_server: NatsServer, notes: dict[str, str], is_used: bool
) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix=f"NEWER{notes['format']}")
    connection = await nats.connect(nats_server.url)
    await connection.jetstream().add_stream(
        name=where.stream(0),
        subjects=[where.stream(0)],
        metadata={"log_id": "x", "shards": "1", **notes},
    )
    await connection.close()

    if not is_used:
        words = f"{where.stream(0)} can be used by programs of schema version {FORMAT + 1} or newer"
        with pytest.raises(SchemaTooNewError, match=words):
            await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
        return
    log = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    await log.append([entry(b"one")])
    reader = await asyncio.to_thread(JetStreamLogReader, where)
    assert len(await asyncio.to_thread(reader.read, 0)) == 1
    await asyncio.to_thread(reader.close)
    await log.close()


def write_audit(directory: Path, notes: dict[str, int]) -> None:
    """Leave a segment with one record, whose first line says more than this program knows."""
    written = AuditFile(directory, replica="api-0", now=NOW)
    written.append(['{"at":"2026-11-01T00:00:00+00:00","verb":"get"}'])
    written.close()
    (segment,) = directory.glob("audit-*.log")
    first, _, rest = segment.read_text().partition("\n")
    segment.write_text(json.dumps(json.loads(first) | notes) + "\n" + rest)


def test_an_audit_file_that_says_more_in_its_first_line_is_read_and_goes_on(tmp_path: Path) -> None:
    write_audit(tmp_path, {"later": 1, "readable_from": audit_file.FORMAT})

    again = AuditFile(tmp_path, replica="api-0", now=NOW)
    again.append(['{"at":"2026-11-01T00:00:01+00:00","verb":"list"}'])

    assert [each.seq for each in again.scan()] == [1, 2]
    again.close()


def test_an_audit_file_for_newer_programs_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    write_audit(tmp_path, {"readable_from": audit_file.FORMAT + 1})
    (segment,) = tmp_path.glob("audit-*.log")
    before = segment.read_bytes()

    with pytest.raises(SchemaTooNewError, match=f"{segment} can be used by programs of schema"):
        AuditFile(tmp_path, replica="api-0", now=NOW)

    assert segment.read_bytes() == before
