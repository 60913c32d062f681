"""Each SQLite file keeps the promises that its store makes, and is opened in one place."""

import sqlite3
from pathlib import Path
from typing import Any

import pytest

from derops.sqlite import connect, transaction
from derops_agent.asset.ledger import Ledger
from derops_agent.telemetry.outbox_store import OutboxStore
from derops_headend.eventlog.sqlite import SqliteEventLog, SqliteLogReader
from derops_headend.gateway.desired_store import DesiredStore

ROOT = Path(__file__).parents[2]
FULL, NORMAL, INCREMENTAL = 2, 1, 2


def asked(connection: sqlite3.Connection, *names: str) -> dict[str, Any]:
    return {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in names}


@pytest.mark.parametrize("store", [Ledger, OutboxStore])
def test_what_the_agent_stores_is_durable_and_nobody_elses(tmp_path: Path, store: Any) -> None:
    opened = store(tmp_path / "agent.db")

    assert asked(opened._db, "locking_mode", "journal_mode", "synchronous") == {
        "locking_mode": "exclusive",
        "journal_mode": "wal",
        "synchronous": FULL,
    }
    opened.close()


def test_the_desired_state_of_a_gateway_is_durable(tmp_path: Path) -> None:
    store = DesiredStore(tmp_path / "desired.db", 1)

    assert asked(store._connection, "locking_mode", "journal_mode", "synchronous") == {
        "locking_mode": "normal",
        "journal_mode": "wal",
        "synchronous": FULL,
    }
    store.close()


def test_the_event_log_is_durable_where_it_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    log = SqliteEventLog(path)
    reader = SqliteLogReader(path)

    promised = {
        "journal_mode": "wal",
        "page_size": 16384,
        "auto_vacuum": INCREMENTAL,
        "wal_autocheckpoint": 2000,
        "journal_size_limit": 67108864,
        "secure_delete": 0,
        "busy_timeout": 30_000,
    }
    assert asked(log._appending, *promised, "synchronous") == {**promised, "synchronous": FULL}
    assert asked(reader._connection, *promised, "synchronous") == {
        **promised,
        "synchronous": NORMAL,
    }
    reader.close()
    log.close()


def test_a_transaction_is_all_or_nothing(tmp_path: Path) -> None:
    connection = connect(tmp_path / "some.db", ["journal_mode = WAL"])
    connection.execute("CREATE TABLE t (a INTEGER) STRICT")

    with pytest.raises(sqlite3.IntegrityError), transaction(connection):
        connection.executemany("INSERT INTO t VALUES (?)", [(1,), ("one",)])
    with transaction(connection):
        connection.execute("INSERT INTO t VALUES (2)")

    assert connection.execute("SELECT a FROM t").fetchall() == [(2,)]
    connection.close()


def test_every_file_of_the_product_is_opened_here() -> None:
    opening = [
        str(path.relative_to(ROOT))
        for tree in ("agent", "headend", "operator")
        for path in (ROOT / tree).rglob("*.py")
        if "sqlite3.connect" in path.read_text()
    ]

    assert opening == ["headend/derops/sqlite.py"]
