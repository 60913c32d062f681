"""Engines, and samples of all times, on TimescaleDB and on plain PostgreSQL."""

import random
from datetime import timedelta

import psycopg
import pytest
from tests.headend.storage.conftest import Query
from tests.headend.storage.storing import NOW, Sample, Store, us
from tests.headend.writing.making import sources, telemetry

from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.engines import add_timescale
from derops_headend.storage.schema import migrate, migrations


def test_the_engine_is_found_and_said(
    database: WriterDatabase, query: Query, request: pytest.FixtureRequest
) -> None:
    (has_timescale,) = query("select count(*) from pg_extension where extname = 'timescaledb'")[0]

    if "timescale" in request.node.name:
        assert has_timescale
        assert database.engine.startswith("TimescaleDB 2.")
    else:
        assert database.engine.startswith("PostgreSQL ")
        assert database.engine.endswith(", daily partitions")


def test_samples_of_many_days_in_any_order_have_their_place(store: Store, query: Query) -> None:
    times = [us(NOW - timedelta(hours=7 * n)) for n in range(25)]
    times += [us(NOW + timedelta(hours=25))]
    random.Random(5).shuffle(times)
    for ts_us in times:
        store([Sample(ts_us, 1.0)])

    (found,) = query("select count(*) from telemetry")[0]
    assert found == len(times)


@pytest.mark.parametrize("hours", [-401 * 24, 49])
def test_a_clock_that_is_no_clock_is_quarantined(store: Store, query: Query, hours: int) -> None:
    store([Sample(us(NOW + timedelta(hours=hours)), 1.0)])

    assert query("select count(*) from telemetry") == [(0,)]
    assert query("select reason from quarantine") == [("BadTime",)]


def test_data_of_an_older_schema_is_taken_along(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        add_timescale(connection)
        connection.execute(
            "create table schema_version (version integer primary key, "
            "applied_at timestamptz not null default now())"
        )
        connection.execute(migrations()[1])
        connection.execute("insert into schema_version (version) values (1)")
        connection.execute(
            "insert into telemetry (asset_id, ts, voltage_volts, received_at) "
            "select 1, now() - n * interval '1 day', n, now() from generate_series(1, 5) n"
        )

        connection.execute("insert into measurement values (1, 'fan', now(), 3)")

        migrate(connection)

        due = connection.execute("select count(*) from roll_up_due").fetchone()
        fan = connection.execute("select name, value from measurement").fetchone()
        (found,) = connection.execute("select sum(voltage_volts) from telemetry").fetchone() or ()
    assert (found, due, fan) == (15, (5,), ("fan", 3))


def test_the_clocks_offset_and_infinite_values_are_told(store: Store, query: Query) -> None:
    entry = telemetry(
        {"active_power_watts": [1.0, float("inf")], "voltage_volts": [float("-inf"), 230.0]},
        t0_us=us(NOW - timedelta(days=1)),
    )
    entry.received_us, entry.clock_offset_milliseconds = us(NOW), 86_400_000
    store.database.store(sources(entry), after=0, through=1)

    assert query(
        "select active_power_watts, voltage_volts, clock_offset_seconds, received_at "
        "from telemetry order by ts"
    ) == [(1.0, None, 86400.0, NOW), (None, 230.0, 86400.0, NOW)]
    assert query("select reason, detail from quarantine") == [
        ("NotFinite", "infinite values: 1 of active_power_watts, 1 of voltage_volts")
    ]


def test_a_sample_from_the_future_is_flagged_though_nobody_compared_the_clocks(
    store: Store, query: Query
) -> None:
    day = timedelta(days=1)
    store([Sample(us(NOW), 1.0), Sample(us(NOW + day), 2.0)])
    store([Sample(us(NOW + timedelta(seconds=5)), 3.0)])

    assert query(
        "select ts - received_at, clock_offset_seconds from telemetry order by active_power_watts"
    ) == [(timedelta(0), -86400.0), (day, -86400.0), (timedelta(seconds=5), None)]


def test_all_that_is_wrong_with_an_entry_is_on_record(store: Store, query: Query) -> None:
    instant_us = us(NOW)
    store([Sample(instant_us, 1.0)])
    store([Sample(instant_us, 2.0, float("inf"))])

    assert query("select reason, detail from quarantine") == [
        (
            "NotFinite",
            "infinite values: 1 of voltage_volts; "
            "ConflictingSamples: 1 samples differ from what is stored of the same instants",
        )
    ]
