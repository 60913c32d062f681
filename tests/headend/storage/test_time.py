"""Engines, roll-ups and retention, on TimescaleDB and on plain PostgreSQL."""

import random
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple

import psycopg
import pytest
from tests.headend.storage.conftest import Query
from tests.headend.writing.making import sources, telemetry

from derops.wire.v1 import log_pb2
from derops_headend.storage import metrics
from derops_headend.storage.database import Database
from derops_headend.storage.rolling_up import HOLD_SECONDS, roll_up

NOW = datetime.now(UTC).replace(microsecond=0)
DAY_US = 86_400_000_000
MINUTE_US = 60_000_000


def us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


class Sample(NamedTuple):
    ts_us: int
    watts: float


def entry_of(samples: list[Sample], received_us: int) -> log_pb2.LogEntry:
    made = telemetry({"active_power_watts": [s.watts for s in samples]}, t0_us=samples[0].ts_us)
    batch = type(telemetry_body(made)).FromString(made.body)
    del batch.dt_us[:]
    batch.dt_us.extend(s.ts_us - samples[0].ts_us for s in samples)
    made.body = batch.SerializeToString()
    made.received_us = received_us
    return made


def telemetry_body(entry: log_pb2.LogEntry):  # type: ignore[no-untyped-def]
    from derops.wire.v1 import agent_pb2

    return agent_pb2.TelemetryBatch.FromString(entry.body)


class Store:
    def __init__(self, database: Database) -> None:
        self.database, self.offset = database, 0

    def __call__(self, samples: list[Sample], received: datetime = NOW) -> None:
        self.offset += 1
        self.database.store(
            sources(entry_of(samples, us(received)), offset=self.offset),
            after=self.offset - 1,
            through=self.offset,
        )


@pytest.fixture
def store(database: Database) -> Store:
    return Store(database)


def roll_up_all(database_url: str, now: datetime = NOW + timedelta(days=1)) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        while roll_up(connection, now, 7):
            pass


def test_the_engine_is_found_and_said(
    database: Database, query: Query, request: pytest.FixtureRequest
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


def expected(samples: dict[int, float]) -> dict[int, tuple[int, float, float, float, float, float]]:
    """Return samples, mean, min, max, injected and absorbed Wh of each minute, from scratch."""
    rows: dict[int, list[float]] = {}
    injected: dict[int, float] = {}
    absorbed: dict[int, float] = {}
    times = sorted(samples)
    for ts_us, following in zip(times, [*times[1:], 2**62], strict=True):
        watts = samples[ts_us]
        rows.setdefault(ts_us // MINUTE_US, []).append(watts)
        end_us = min(following, ts_us + HOLD_SECONDS * 1_000_000)
        for minute in range(ts_us // MINUTE_US, (end_us - 1) // MINUTE_US + 1):
            held_us = min(end_us, (minute + 1) * MINUTE_US) - max(ts_us, minute * MINUTE_US)
            for energy, power in ((injected, max(watts, 0.0)), (absorbed, max(-watts, 0.0))):
                energy[minute] = energy.get(minute, 0.0) + power * held_us / 3.6e9
    return {
        minute: (
            len(values),
            sum(values) / len(values),
            min(values),
            max(values),
            injected[minute],
            absorbed[minute],
        )
        for minute, values in rows.items()
    }


def test_roll_ups_are_the_same_whatever_came_late_or_twice(
    store: Store, query: Query, database_url: str
) -> None:
    chance = random.Random(11)
    start_us = us(NOW - timedelta(hours=12)) // MINUTE_US * MINUTE_US
    samples: dict[int, float] = {}
    ts_us = start_us
    for _ in range(400):
        ts_us += chance.choice([1, 5, 10, 30, 90, 200]) * 1_000_000
        samples[ts_us] = float(chance.randint(-8000, 8000))
    batches = [list(samples.items())[n : n + 9] for n in range(0, 400, 9)]
    late = chance.sample(range(len(batches)), 15)
    for number, batch in enumerate(batches):
        newest = datetime.fromtimestamp(batch[-1][0] / 1e6, UTC)
        if number not in late:
            store([Sample(*item) for item in batch], newest + timedelta(seconds=1))
        roll_up_all(database_url, newest + timedelta(seconds=1))
    for number in [*late, 3, 3]:
        store([Sample(*item) for item in batches[number]], NOW)
        roll_up_all(database_url)

    wanted = expected(samples)
    minutes = query(
        "select extract(epoch from bucket)::bigint / 60, samples, active_power_watts_mean, "
        "active_power_watts_min, active_power_watts_max, energy_injected_watt_hours, "
        "energy_absorbed_watt_hours from telemetry_1m where samples > 0"
    )
    assert {row[0]: row[1:] for row in minutes} == {
        minute: pytest.approx(values) for minute, values in wanted.items()
    }
    held = query("select sum(energy_injected_watt_hours) from telemetry_1m")
    quarters = query(
        "select sum(samples), sum(energy_injected_watt_hours), max(active_power_watts_max), "
        "count(*) filter (where bucket <> date_bin('15 minutes', bucket, 'epoch'::timestamptz)) "
        "from telemetry_15m"
    )
    assert quarters == [(400, pytest.approx(held[0][0]), max(samples.values()), 0)]
    assert query("select count(*) from roll_up_due") == [(0,)]


def test_a_minute_is_rolled_up_when_most_of_it_has_come(
    store: Store, query: Query, database_url: str
) -> None:
    minute = NOW.replace(second=0) - timedelta(minutes=1)
    store([Sample(us(minute), 60.0)])

    roll_up_all(database_url, minute + timedelta(seconds=239))
    assert query("select count(*) from telemetry_1m") == [(0,)]
    roll_up_all(database_url, minute + timedelta(seconds=241))
    assert query("select samples, energy_injected_watt_hours from telemetry_1m") == [(1, 1.0)]


def test_a_sample_that_is_not_committed_yet_is_not_forgotten(
    store: Store, query: Query, database_url: str
) -> None:
    """A roll-up in between must leave the note of the transaction that it cannot see."""
    ts_us = us(NOW - timedelta(hours=1)) // MINUTE_US * MINUTE_US
    store([Sample(ts_us, 10.0)], NOW)
    database = store.database
    seen: list[int] = []
    store_samples = database._store_samples

    def after_the_note(*arguments):  # type: ignore[no-untyped-def]
        found = store_samples(*arguments)
        roll_up_all(database_url)
        seen.append(len(query("select from roll_up_due")))
        return found

    database._store_samples = after_the_note  # type: ignore[method-assign]
    store([Sample(ts_us + 1_000_000, 30.0)], NOW)
    roll_up_all(database_url)

    assert seen == [1]
    assert query("select samples, active_power_watts_max from telemetry_1m where samples > 0") == [
        (2, 30.0)
    ]


def test_retention_drops_whole_days_and_nothing_that_is_to_be_rolled_up(
    database_url: str, query: Query
) -> None:
    database = Database.connect(database_url, "log", retention_days=3)
    store = Store(database)
    days = [(NOW - timedelta(days=n)).replace(hour=12) for n in range(10)]
    for noon in days:
        store([Sample(us(noon), 1.0)])
    before = metrics.DAYS_DROPPED._value.get()

    database._drop_before((NOW - timedelta(days=3)).date())
    assert query("select count(*) from telemetry") == [(10,)]
    roll_up_all(database_url)
    database._drop_before((NOW - timedelta(days=3)).date())

    kept = [ts.date() for (ts,) in query("select ts at time zone 'UTC' from telemetry")]
    assert min(kept) == (NOW - timedelta(days=3)).date()
    assert metrics.DAYS_DROPPED._value.get() - before == 6
    assert query("select count(*) from telemetry_1m where samples > 0") == [(10,)]
    store([Sample(us(days[8]), 2.0)])  # late, into a day that was dropped
    assert query("select count(*) from telemetry") == [(5,)]
    assert isinstance(kept[0], date)
    database.close()


def test_data_of_an_older_schema_is_taken_along(database_url: str) -> None:
    from derops_headend.storage.engines import add_timescale
    from derops_headend.storage.migrating import migrate, migrations

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

        migrate(connection)

        (found,) = connection.execute("select sum(voltage_volts) from telemetry").fetchone() or ()
    assert found == 15


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
