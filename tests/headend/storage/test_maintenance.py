"""Partitions, retention, and whoever is in their way, on both engines."""

import threading
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import psycopg
import pytest
from tests.counters import value_of
from tests.headend.storage.conftest import Query
from tests.headend.storage.storing import NOW, Sample, Store, roll_up_all, us
from tests.headend.writing.making import sources, telemetry
from tests.waiting import eventually

from derops_headend.storage import database as database_module
from derops_headend.storage import maintenance, metrics
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.engines import detect
from derops_headend.storage.history_rows import record
from derops_headend.storage.maintenance import Keeper

NOON = NOW.replace(hour=12, minute=0, second=0)
MIDNIGHT = NOW.replace(hour=0, minute=0, second=0)
KEPT = (NOW - timedelta(days=3)).date()


@pytest.fixture
def of_keeper(database: WriterDatabase, database_url: str) -> Iterator[psycopg.Connection]:
    """Return the connection of another writer."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def keeper(of_keeper: psycopg.Connection) -> Keeper:
    """Return a keeper of another writer, that keeps three days."""
    return Keeper(of_keeper, detect(of_keeper), retention_days=3)


def test_retention_drops_whole_days_and_nothing_that_is_to_be_rolled_up(
    store: Store, keeper: Keeper, database_url: str, query: Query
) -> None:
    for n in range(10):
        store([Sample(us(NOON - timedelta(days=n)), 1.0)])
    before = value_of(metrics.PARTITIONS_DROPPED)

    keeper.drop_before(KEPT)
    assert query("select count(*) from telemetry") == [(10,)]
    roll_up_all(database_url)
    keeper.drop_before(KEPT)

    assert query("select min(ts at time zone 'UTC')::date, count(*) from telemetry") == [(KEPT, 4)]
    assert value_of(metrics.PARTITIONS_DROPPED) - before == 6
    assert query("select count(*) from telemetry_1m where samples > 0") == [(10,)]


def test_what_a_minute_after_midnight_needs_of_the_day_before_stays(
    store: Store, keeper: Keeper, database_url: str, query: Query
) -> None:
    midnight = MIDNIGHT - timedelta(days=3)
    store([Sample(us(midnight - timedelta(seconds=10)), 3600.0)])
    roll_up_all(database_url)
    store([Sample(us(midnight + timedelta(seconds=20)), 0.0)])

    keeper.drop_before(KEPT)
    roll_up_all(database_url)

    after = "select energy_injected_watt_hours from telemetry_1m where bucket = %s"
    assert query(after, midnight) == [(20.0,)]


def test_samples_that_come_after_their_day_was_dropped_do_not_spoil_its_roll_ups(
    store: Store, keeper: Keeper, database_url: str, query: Query
) -> None:
    noon = NOON - timedelta(days=5)
    store([Sample(us(noon) + n * 1_000_000, 100.0) for n in range(150)])
    roll_up_all(database_url)
    made = query("select * from telemetry_1m order by bucket")
    keeper.drop_before(KEPT)

    store([Sample(us(noon) + 500_000, -7000.0)])
    roll_up_all(database_url)

    assert len(made) == 5
    assert query("select * from telemetry_1m order by bucket") == made
    assert query("select count(*) from telemetry") == [(1,)]
    assert query("select count(*) from roll_up_due") == [(0,)]
    keeper.drop_before(KEPT)
    assert query("select count(*) from telemetry") == [(0,)]


def test_a_day_that_another_writer_dropped_is_made_again_for_late_samples(
    store: Store, keeper: Keeper, database_url: str, query: Query
) -> None:
    noon = NOON - timedelta(days=5)
    store([Sample(us(noon), 1.0)])
    roll_up_all(database_url)
    keeper.drop_before(KEPT)
    assert query("select count(*) from telemetry") == [(0,)]

    store([Sample(us(noon) + 1, 1.0)])

    assert query("select count(*) from telemetry") == [(1,)]
    assert query("select count(*) from quarantine") == [(0,)]


def test_measurements_lie_by_day_too(
    database: WriterDatabase, keeper: Keeper, database_url: str, query: Query
) -> None:
    old, new = (telemetry({"fan_speed": [3.0]}, t0_us=us(NOON - timedelta(days=n))) for n in (5, 0))
    old.received_us = new.received_us = us(NOW)
    database.store(sources(old, new), after=0, through=1)

    keeper.drop_before(KEPT)

    assert query("select ts, name, value from measurement") == [(NOON, "fan_speed", 3.0)]


def test_samples_find_room_while_somebody_reads_for_long(
    store: Store, database_url: str, query: Query
) -> None:
    with psycopg.connect(database_url) as backup:
        backup.execute("select from telemetry")
        store([Sample(us(NOON - timedelta(days=n)), 1.0) for n in range(9, 6, -1)])

    assert query("select count(*) from telemetry") == [(3,)]


def test_a_long_reader_puts_retention_off_and_stops_nothing_else(
    store: Store, keeper: Keeper, database_url: str, query: Query
) -> None:
    for n in (0, 5):
        store([Sample(us(NOON - timedelta(days=n)), 1.0)])
    later = NOW + timedelta(days=1, hours=12)
    before = value_of(metrics.PUT_OFF)
    with psycopg.connect(database_url) as backup:
        backup.execute("select from telemetry")
        keeper.step(later)
        assert value_of(metrics.PUT_OFF) > before

        def rolled_up() -> bool:
            keeper.step(later)  # on a busy machine one step has no time for all that is due
            return query("select count(*) from telemetry_1m where samples > 0") == [(2,)]

        eventually(rolled_up, "both days to be rolled up")
        WriterDatabase.connect(database_url, "other", retention_days=3).close()
        store([Sample(us(NOON) + 1, 1.0)])
    assert query("select count(*) from telemetry") == [(3,)]

    keeper._keep_at = 0
    keeper.step(later)
    assert query("select count(*) from telemetry") == [(2,)]


def test_samples_of_a_transaction_in_flight_are_not_dropped_unseen(
    store: Store,
    keeper: Keeper,
    database_url: str,
    query: Query,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sample = Sample(us(NOON - timedelta(days=4)), 1.0)
    dropping = threading.Thread(target=keeper.drop_before, args=(KEPT,))

    def drop_meanwhile(*arguments: Any) -> None:
        dropping.start()
        eventually(lambda: query("select 1 from pg_locks where not granted"), "drop that waits")
        record(*arguments)

    monkeypatch.setattr(database_module, "record", drop_meanwhile)
    store([sample])
    dropping.join()

    assert query("select count(*) from telemetry") == [(1,)]
    roll_up_all(database_url)
    assert query("select count(*) from telemetry_1m where samples > 0") == [(1,)]


def test_maintenance_waits_for_locks_for_a_second_only(
    keeper: Keeper, of_keeper: psycopg.Connection
) -> None:
    def limits() -> list[str]:
        names = ("lock_timeout", "statement_timeout")
        shown = [of_keeper.execute(f"show {name}").fetchone() for name in names]
        return [row[0] for row in shown if row]

    seen: list[str] = []
    assert keeper.attempt(lambda: seen.extend(limits()))
    assert seen == ["1s", "10s"]
    assert limits() == ["0", "1min"]


def test_maintenance_that_fails_does_not_keep_the_writer_from_storing(
    store: Store, database_url: str, query: Query
) -> None:
    store([Sample(us(NOW - timedelta(hours=1)), 1.0)])
    with psycopg.connect(database_url, autocommit=True) as person:
        person.execute("alter table telemetry_1m add check (samples < 0)")
    before = value_of(metrics.PUT_OFF)

    again = WriterDatabase.connect(database_url, "log")
    again.maintain()
    Store(again, 1)([Sample(us(NOW), 2.0)])
    again.close()

    assert value_of(metrics.PUT_OFF) - before == 2
    assert query("select count(*) from telemetry where ts >= %s", NOW) == [(1,)]


def test_maintenance_says_when_the_connection_is_lost(
    keeper: Keeper, of_keeper: psycopg.Connection
) -> None:
    def vanish() -> None:
        of_keeper.execute("select pg_terminate_backend(pg_backend_pid())")

    with pytest.raises(psycopg.OperationalError):
        keeper.attempt(vanish)


def test_the_age_of_the_oldest_due_minute_is_told(store: Store, keeper: Keeper) -> None:
    minute: datetime = NOW.replace(second=0)
    store([Sample(us(minute), 1.0)])

    keeper.step(minute + timedelta(seconds=200))
    assert value_of(metrics.ROLL_UP_DELAY_SECONDS) == 200
    keeper.step(minute + timedelta(seconds=300))
    assert value_of(metrics.ROLL_UP_DELAY_SECONDS) == 0


def test_rows_that_an_agent_can_multiply_are_deleted_with_age_in_bounded_steps(
    keeper: Keeper, database_url: str, query: Query, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "DELETED_AT_ONCE", 10)
    with psycopg.connect(database_url, autocommit=True) as connection:
        for days, count in ((1, 7), (9, 25)):
            at = NOW - timedelta(days=days)
            connection.execute(
                "insert into quarantine (log_id, log_offset, entry_index, kind, namespace, name, "
                "uid, reason, detail, body, at) select 'l', %s, n, 1, '', '', '', '', '', '', %s "
                "from generate_series(1, %s) n",
                (days, at, count),
            )
            connection.execute(
                "insert into connection_event (log_id, log_offset, entry_index, asset_id, event, "
                "reason, message, epoch, peer, serial_number, replica, at) "
                "select 'l', %s, n, 1, '', '', '', 1, '', '', '', %s from generate_series(1, %s) n",
                (days, at, count),
            )
            connection.execute(
                "insert into telemetry_gap select 1, 'o', %s + n, %s, %s, 1, '', %s "
                "from generate_series(1, %s) n",
                (1000 * days, at, at, at, count),
            )
    left = []
    for _ in range(4):
        keeper.step(NOW)
        left.append(query("select count(*) from quarantine")[0][0])

    assert left == [22, 12, 7, 7]
    assert query("select count(*) from connection_event") == [(7,)]
    assert query("select count(*) from telemetry_gap") == [(7,)]
