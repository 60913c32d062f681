"""Roll-ups, compared with what their samples say from scratch, on both engines."""

import math
import random
import threading
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from tests.headend.storage.conftest import Query
from tests.headend.storage.storing import (
    MINUTE_US,
    NOW,
    Sample,
    Store,
    minute_of,
    roll_up_all,
    us,
)

from derops_headend.storage import database as database_module
from derops_headend.storage.history_rows import record
from derops_headend.storage.minutes import HOLD_SECONDS
from derops_headend.storage.roll_ups import minutes_of, roll_up
from derops_headend.writing.rows import Samples

QUARTER_US = 15 * MINUTE_US
COLUMNS = (
    "samples, active_power_watts_samples, active_power_watts_mean, active_power_watts_min, "
    "active_power_watts_max, voltage_volts_samples, voltage_volts_mean, voltage_volts_min, "
    "voltage_volts_max, energy_injected_watt_hours, energy_absorbed_watt_hours"
)


def expected(samples: Iterable[Sample], width_us: int) -> dict[int, tuple[Any, ...]]:
    """Return the roll-ups of samples, straight from their definition."""
    ordered = sorted(set(samples))
    energy = energies([each for each in ordered if not math.isnan(each.watts)], width_us)
    groups: dict[int, list[Sample]] = {bucket_us: [] for bucket_us in energy}
    for each in ordered:
        groups.setdefault(each.ts_us // width_us * width_us, []).append(each)
    return {
        bucket_us: (
            len(group),
            *facts([each.watts for each in group]),
            *facts([each.volts for each in group]),
            *energy.get(bucket_us, (None, None)),
        )
        for bucket_us, group in groups.items()
    }


def energies(ordered: list[Sample], width_us: int) -> dict[int, tuple[float, float]]:
    found: dict[int, tuple[float, float]] = {}
    ends = [*(each.ts_us for each in ordered[1:]), 2**62]
    for (start_us, watts, _), next_us in zip(ordered, ends, strict=True):
        end_us = min(next_us, start_us + HOLD_SECONDS * 1_000_000)
        for bucket_us in range(start_us // width_us * width_us, end_us, width_us):
            held_us = min(end_us, bucket_us + width_us) - max(start_us, bucket_us)
            injected, absorbed = found.get(bucket_us, (0.0, 0.0))
            found[bucket_us] = (
                injected + max(watts, 0.0) * held_us / 3.6e9,
                absorbed + max(-watts, 0.0) * held_us / 3.6e9,
            )
    return found


def facts(values: list[float]) -> tuple[int, float | None, float | None, float | None]:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return 0, None, None, None
    return len(known), sum(known) / len(known), min(known), max(known)


def found(query: Query, table: str) -> dict[int, tuple[Any, ...]]:
    rows = query(f"select extract(epoch from bucket)::bigint * 1000000, {COLUMNS} from {table}")
    return {row[0]: row[1:] for row in rows}


def check(query: Query, samples: Iterable[Sample]) -> None:
    samples = list(samples)
    for table, width_us in (("telemetry_1m", MINUTE_US), ("telemetry_15m", QUARTER_US)):
        wanted = expected(samples, width_us)
        assert found(query, table) == {
            bucket_us: pytest.approx(row) for bucket_us, row in wanted.items()
        }
    assert query("select count(*) from roll_up_due") == [(0,)]


@pytest.mark.parametrize("seed", range(2))
def test_roll_ups_are_what_the_samples_say_whatever_came_late_or_twice(
    store: Store, query: Query, database_url: str, seed: int
) -> None:
    chance = random.Random(seed)
    ts_us = minute_of(NOW - timedelta(days=2))
    samples = []
    for _ in range(300):
        ts_us += chance.choice([1, 5, 10, 30, 61, 90, 119, 121, 200, 1000]) * 1_000_000
        watts = chance.choice([math.nan, float(chance.randint(-8000, 8000))])
        volts = chance.choice([math.nan, chance.uniform(220, 240)])
        if not (math.isnan(watts) and math.isnan(volts)):
            samples.append(Sample(ts_us, watts, volts))
    batches = [samples[n : n + 9] for n in range(0, len(samples), 9)]
    order = batches + chance.sample(batches, 5)
    for _ in range(8):  # some late, some early
        order.insert(chance.randrange(len(order)), order.pop(chance.randrange(len(order))))
    for batch in order:
        newest = datetime.fromtimestamp(batch[-1].ts_us / 1e6, UTC)
        store(batch, newest)
        if chance.random() < 0.7:
            roll_up_all(database_url, newest + timedelta(seconds=chance.choice([0, 100, 500])))
    roll_up_all(database_url)

    check(query, samples)


def test_power_is_held_over_minutes_without_samples_and_beside_other_quantities(
    store: Store, query: Query, database_url: str
) -> None:
    start_us = minute_of(NOW - timedelta(hours=1))
    samples = [
        Sample(start_us + 50_000_000, watts=3600.0),
        Sample(start_us + 55_000_000, volts=230.0),
        Sample(start_us + 165_000_000, watts=-3600.0),
    ]
    store(samples)
    roll_up_all(database_url)

    check(query, samples)
    energy = "select energy_injected_watt_hours from telemetry_1m order by bucket limit 3"
    assert query(energy) == [(10.0,), (60.0,), (45.0,)]


def test_a_late_sample_changes_the_minutes_that_its_power_is_held_into(
    store: Store, query: Query, database_url: str
) -> None:
    start_us = minute_of(NOW - timedelta(hours=1))
    samples = [
        Sample(start_us + 1_000_000, watts=100.0),
        Sample(start_us + 100_000_000, watts=50.0),
        Sample(start_us + 300_000_000, watts=70.0),
    ]
    store(samples)
    roll_up_all(database_url)
    late = Sample(start_us + 59_000_000, watts=-9000.0)
    store([late])
    roll_up_all(database_url)

    check(query, [*samples, late])


def test_a_minute_is_rolled_up_when_most_of_it_has_come(
    store: Store, query: Query, database_url: str
) -> None:
    minute = NOW.replace(second=0) - timedelta(minutes=2)
    store([Sample(us(minute), 60.0)])

    roll_up_all(database_url, minute + timedelta(seconds=239))
    assert query("select count(*) from telemetry_1m") == [(0,)]
    roll_up_all(database_url, minute + timedelta(seconds=241))
    assert query(
        "select samples, energy_injected_watt_hours from telemetry_1m order by bucket"
    ) == [(1, 1.0), (0, 1.0)]


def test_a_sample_that_is_not_committed_yet_is_not_forgotten(
    store: Store, query: Query, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A roll-up in between must leave the note of the transaction that it cannot see."""
    ts_us = minute_of(NOW - timedelta(hours=1))
    first, second = Sample(ts_us, 10.0), Sample(ts_us + 1_000_000, 30.0)
    store([first], NOW)
    left: list[Any] = []

    def roll_up_meanwhile(*arguments: Any) -> None:
        roll_up_all(database_url)
        left.extend(query("select from roll_up_due"))
        record(*arguments)

    monkeypatch.setattr(database_module, "record", roll_up_meanwhile)
    store([second], NOW)
    roll_up_all(database_url)

    assert len(left) == 1
    check(query, [first, second])


def test_a_roll_up_that_dies_is_made_again(store: Store, query: Query, database_url: str) -> None:
    samples = [Sample(minute_of(NOW - timedelta(hours=1)), 10.0)]
    store(samples)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute("begin")
        assert roll_up(connection, NOW, 100) == 1
        connection.execute("rollback")

    assert query("select count(*) from telemetry_1m") == [(0,)]
    roll_up_all(database_url)
    check(query, samples)


def test_writers_that_roll_up_at_once_make_whole_quarters(
    store: Store, query: Query, database_url: str
) -> None:
    start_us = minute_of(NOW - timedelta(days=1))
    samples = [Sample(start_us + n * MINUTE_US, float(n)) for n in range(240)]
    store(samples)
    wrong: list[BaseException] = []

    def work() -> None:
        try:
            with psycopg.connect(database_url, autocommit=True) as connection:
                while connection.execute("select 1 from roll_up_due limit 1").fetchone():
                    roll_up(connection, NOW, 5)
        except psycopg.Error as error:
            wrong.append(error)

    workers = [threading.Thread(target=work) for _ in range(3)]
    for each in workers:
        each.start()
    for each in workers:
        each.join()

    assert not wrong
    check(query, samples)


def test_a_roll_up_reads_the_day_of_its_samples_by_key_and_no_other_day(
    store: Store, database_url: str
) -> None:
    days = [NOW - timedelta(days=number) for number in range(2, 12)]
    for day in days:
        store([Sample(us(day) + 1_000_000 * n, 100.0) for n in range(900)])
    roll_up_all(database_url)
    store([Sample(us(days[4]) + 500_000, 200.0)])

    with psycopg.connect(database_url, autocommit=True) as connection:
        for table in parts_of_telemetry(connection):
            connection.execute(f"vacuum analyze {table}".encode())
        with connection.transaction():
            assert roll_up(connection, NOW, 500) == 1
            read = connection.execute(_READ, [parts_of_telemetry(connection)]).fetchall()

    assert len(read) == 1, "one day of ten"
    ((_, scans, rows),) = read
    assert scans == 0, "sequential scans"
    assert rows < 900, "no more than the minutes that are made"


_READ = """
    select relname, seq_scan, seq_tup_read + idx_tup_fetch from pg_stat_xact_user_tables
    where relid = any(%s::regclass[]) and seq_scan + idx_scan > 0
"""


def parts_of_telemetry(connection: psycopg.Connection) -> list[str]:
    """Return the names of partitions or chunks."""
    rows = connection.execute(
        "select inhrelid::regclass::text from pg_inherits where inhparent = 'telemetry'::regclass"
    ).fetchall()
    return [name for (name,) in rows]


def test_values_that_no_sum_could_hold_are_stored_and_not_rolled_up(
    store: Store, database_url: str, query: Query
) -> None:
    begin_us = minute_of(NOW - timedelta(hours=1))
    wild = [1e308, -1e308, 1e155, 2e30, 1e30, -1e30, 5e-324, -1e-310]
    store([Sample(begin_us + n * 1_000_000, watts, 230.0) for n, watts in enumerate(wild)])
    store([Sample(begin_us - MINUTE_US + 500, 1e200)])  # held into the minute, if it were power
    store([Sample(begin_us + 5 * MINUTE_US + n, 5e-324, 5e-324) for n in range(3)])

    roll_up_all(database_url)

    assert query(
        "select samples, active_power_watts_samples, active_power_watts_min, "
        "active_power_watts_max, voltage_volts_mean from telemetry_1m where bucket = %s",
        datetime.fromtimestamp(begin_us / 1e6, UTC),
    ) == [(8, 4, -1e30, 1e30, 230.0)]
    assert query("select sum(samples)::bigint from telemetry_15m") == [(12,)]
    assert query("select array_agg(active_power_watts order by ts) from telemetry") == [
        ([1e200, *wild, 5e-324, 5e-324, 5e-324],)
    ]
    assert query("select count(*) from quarantine") == [(0,)]


def test_minutes_are_those_of_each_asset_once_whatever_the_order_and_the_epoch() -> None:
    minutes = [7, -3, 7, 6, 40_000_000, -3, 7]
    assets = [1, 0, 0, 1, 1, 0, 1]
    samples = Samples(
        source=np.zeros(7, "i4"),
        asset=np.array(assets, "i4"),
        ts_us=np.array(minutes) * MINUTE_US + 59_999_999,
        received_us=np.zeros(7, "i8"),
        values={},
    )
    ids = np.array([2**40, 5])

    touched = minutes_of(samples, ids)

    pairs = list(zip(touched.asset_ids.tolist(), touched.bucket_us.tolist(), strict=True))
    assert sorted(pairs) == sorted(
        {
            (int(ids[asset]), minute * MINUTE_US)
            for asset, minute in zip(assets, minutes, strict=True)
        }
    )
    assert len(pairs) == 5
