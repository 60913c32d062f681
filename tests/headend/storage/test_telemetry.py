"""What is read of telemetry, compared with what its samples say, on both engines."""

import itertools
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

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

from derops_headend.storage import telemetry
from derops_headend.storage.engines import detect
from derops_headend.storage.maintenance import Keeper
from derops_headend.storage.newest import AssetKey, find_lives, find_newest
from derops_headend.storage.quantities import QUANTITIES, ROLLED_UP
from derops_headend.storage.resolution import TelemetrySource, TimeResolution, widen
from derops_headend.storage.telemetry import (
    Series,
    copy_samples,
    copy_steps,
    read_samples,
    read_steps,
)
from derops_headend.writing import rows

WATTS = ["active_power_watts"]


@pytest.fixture
def connection(database_url: str):  # type: ignore[no-untyped-def]
    with psycopg.connect(database_url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.read_only = True
        yield connection


def at(ts_us: int) -> datetime:
    return datetime.fromtimestamp(ts_us / 1e6, UTC)


def asset_of(query: Query) -> int:
    return int(query("select min(asset_id) from asset")[0][0])


def some_samples(seed: int, minutes: int, end_us: int) -> list[Sample]:
    chance = random.Random(seed)
    ts_us, found = end_us - minutes * MINUTE_US, []
    while ts_us < end_us:
        found.append(Sample(ts_us, float(chance.randint(-8000, 8000)), chance.uniform(220, 240)))
        ts_us += chance.choice([1, 5, 10, 30, 61, 90, 119, 200, 1000]) * 1_000_000
    return found


def steps(
    connection: psycopg.Connection,
    asset_id: int,
    step_seconds: int,
    first: datetime,
    end: datetime,
    quantities: Sequence[str] = tuple(ROLLED_UP),
) -> Series:
    source = TelemetrySource.QUARTERS if step_seconds >= 900 else TelemetrySource.MINUTES
    first, end = widen(first, end, step_seconds)
    found = read_steps(
        connection, asset_id, quantities, TimeResolution(source, step_seconds), first, end, NOW
    )
    connection.rollback()
    return found


def test_the_quantities_are_those_that_are_stored(query: Query) -> None:
    assert QUANTITIES == rows.NUMBERS
    columns = query(
        "select column_name from information_schema.columns where table_name = 'telemetry_1m'"
    )
    named = {
        f"{each}_{what}".removesuffix("_sum") for each, how in ROLLED_UP.items() for what in how
    }
    assert named <= {name for (name,) in columns}


def test_samples_are_all_there_once_whatever_times_they_are_asked_for(
    store: Store, query: Query, connection: psycopg.Connection
) -> None:
    samples = some_samples(1, 120, us(NOW))
    store(samples)
    ends = sorted({at(each.ts_us) for each in samples[::7]} | {NOW - timedelta(days=1), NOW})

    found: list[tuple[object, ...]] = []
    for first, end in itertools.pairwise(ends):
        series = read_samples(
            connection,
            asset_of(query),
            [*WATTS, "voltage_volts", "setpoint_watts"],
            first,
            end,
            999,
        )
        found += zip(series.time_ms, *series.columns.values(), strict=True)

    assert found == [(each.ts_us // 1000, each.watts, each.volts, None) for each in samples]


def test_no_more_samples_are_read_than_are_wanted(
    store: Store, query: Query, connection: psycopg.Connection
) -> None:
    samples = some_samples(1, 60, us(NOW))
    store(samples)

    series = read_samples(connection, asset_of(query), WATTS, NOW - timedelta(days=1), NOW, 3)

    assert list(series.time_ms) == [each.ts_us // 1000 for each in samples[:3]]


def test_csv_says_the_same(
    store: Store, query: Query, connection: psycopg.Connection, database_url: str
) -> None:
    begin_us = minute_of(NOW - timedelta(hours=1))
    store([Sample(begin_us + 250_001, 5000.0), Sample(begin_us + MINUTE_US, volts=230.5)])
    asset_id, first = asset_of(query), at(begin_us)
    minutes = [first + timedelta(minutes=number) for number in range(2)]

    text = copy_samples(connection, asset_id, [*WATTS, "voltage_volts"], first, NOW, 9).decode()
    assert text.splitlines() == [
        "time,activePowerWatts,voltageVolts",
        f"{minutes[0]:%Y-%m-%dT%H:%M}:00.250001Z,5000,",
        f"{minutes[1]:%Y-%m-%dT%H:%M}:00.000000Z,,230.5",
    ]
    roll_up_all(database_url)
    connection.rollback()
    resolution = TimeResolution(TelemetrySource.MINUTES, 60)
    copied = copy_steps(
        connection, asset_id, ["frequency_hertz", *WATTS], resolution, first, NOW, NOW
    )
    lines = copied.decode().splitlines()
    assert lines[0] == (
        "time,frequencyHertzMean,activePowerWattsMean,activePowerWattsMin,activePowerWattsMax"
    )
    assert lines[1] == f"{minutes[0]:%Y-%m-%dT%H:%M}:00.000000Z,,5000,5000,5000"


@pytest.mark.parametrize("step_seconds", [60, 300, 900, 7200])
def test_what_is_not_rolled_up_yet_is_told_as_it_will_be(
    store: Store,
    query: Query,
    connection: psycopg.Connection,
    database_url: str,
    step_seconds: int,
) -> None:
    """Minutes that are old, that came late, and that are new: before their roll-up and after."""
    samples = some_samples(step_seconds, 300, minute_of(NOW) - 3 * MINUTE_US)
    late = samples[40:120:9]
    store([each for each in samples if each not in late][:-30])
    roll_up_all(database_url)
    store(samples[-30:])
    store(late)
    first, end = NOW - timedelta(hours=6), NOW
    asset_id = asset_of(query)

    before = steps(connection, asset_id, step_seconds, first, end)
    assert before.provisional
    roll_up_all(database_url)
    after = steps(connection, asset_id, step_seconds, first, end)

    assert not after.provisional
    assert before.time_ms == after.time_ms
    for name, values in after.columns.items():
        assert before.columns[name] == pytest.approx(values), name
    assert len(after.time_ms) > 2


def test_steps_hold_every_sample_once(
    store: Store, query: Query, connection: psycopg.Connection, database_url: str
) -> None:
    samples = some_samples(3, 500, minute_of(NOW) - MINUTE_US)
    store(samples)
    roll_up_all(database_url)
    for step_seconds in (60, 120, 900, 3600):
        found = steps(
            connection, asset_of(query), step_seconds, NOW - timedelta(hours=12), NOW, WATTS
        )
        groups: dict[int, list[float]] = {}
        for each in samples:
            step_ms = each.ts_us // 1000 // (step_seconds * 1000) * step_seconds * 1000
            groups.setdefault(step_ms, []).append(each.watts)
        told = {
            step_ms: (mean, low, high)
            for step_ms, mean, low, high in zip(found.time_ms, *found.columns.values(), strict=True)
            if mean is not None
        }
        assert told == {
            step_ms: pytest.approx((sum(watts) / len(watts), min(watts), max(watts)))
            for step_ms, watts in groups.items()
        }


def test_what_was_not_measured_is_none_and_never_zero(
    store: Store, query: Query, connection: psycopg.Connection, database_url: str
) -> None:
    store([Sample(minute_of(NOW - timedelta(hours=1)), volts=230.0)])
    roll_up_all(database_url)

    found = steps(connection, asset_of(query), 60, NOW - timedelta(hours=2), NOW)

    assert {name: values for name, values in found.columns.items() if values != (None,)} == {
        "voltage_volts_mean": (230.0,),
        "voltage_volts_min": (230.0,),
        "voltage_volts_max": (230.0,),
    }


def test_more_minutes_than_are_made_at_once_are_told_as_provisional(
    store: Store,
    query: Query,
    connection: psycopg.Connection,
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(telemetry, "MOST_MADE_MINUTES", 10)
    begin_us = minute_of(NOW - timedelta(hours=1))
    store([Sample(begin_us + n * MINUTE_US, 100.0) for n in range(30)])

    found = steps(connection, asset_of(query), 60, at(begin_us), NOW, WATTS)

    ((first, end),) = found.provisional
    assert first == at(begin_us)
    assert len(found.time_ms) == 9  # power is held into the 31st minute, and not into the 32nd
    assert end == at(found.time_ms[-1] * 1000) + timedelta(minutes=2)


def test_days_that_were_dropped_are_told_as_they_were_rolled_up(
    store: Store, query: Query, connection: psycopg.Connection, database_url: str
) -> None:
    old = NOW - timedelta(days=9)
    store([Sample(minute_of(old), 100.0)])
    store([Sample(us(NOW) - 20 * MINUTE_US, 100.0)])
    roll_up_all(database_url)
    with psycopg.connect(database_url, autocommit=True) as writer:
        Keeper(writer, detect(writer)).drop_before((NOW - timedelta(days=5)).date())
    store([Sample(minute_of(old) + 1_000_000, 300.0)])

    found = steps(connection, asset_of(query), 60, old - timedelta(hours=1), NOW, WATTS)

    assert found.columns["active_power_watts_mean"][0] == 100.0
    assert not found.provisional


def test_the_newest_sample_is_found_however_old_and_none_of_the_future(
    store: Store, query: Query, connection: psycopg.Connection
) -> None:
    store([Sample(us(NOW - timedelta(hours=30)), 5.0)])
    store([Sample(us(NOW + timedelta(hours=5)), 7.0)])
    (key,) = [AssetKey(*row) for row in query("select namespace, name, uid from asset")]

    found = find_newest(connection, [key], NOW)[key.uid]
    assert (found.at, found.age_seconds) == (NOW - timedelta(hours=30), 30 * 3600)
    assert found.values["active_power_watts"] == 5.0
    assert found.values["setpoint_watts"] is None
    connection.rollback()
    store([Sample(us(NOW) - 5_000_000, 9.0)])
    assert find_newest(connection, [key], NOW)[key.uid].age_seconds == 5
    assert find_newest(connection, [key], NOW - timedelta(days=3)) == {}
    assert find_newest(connection, [], NOW) == {}


def test_rows_under_anothers_uid_are_not_that_others(
    store: Store, query: Query, connection: psycopg.Connection, database_url: str
) -> None:
    """An agent may name any uid; its rows are of its own namespace and name."""
    store([Sample(us(NOW) - 5_000_000, 9.0)])
    ((namespace, name, uid),) = query("select namespace, name, uid from asset")
    with psycopg.connect(database_url, autocommit=True) as writer:
        writer.execute("insert into asset (namespace, name, uid) values ('evil', 'x', %s)", (uid,))
        writer.execute(
            "insert into telemetry (asset_id, ts, active_power_watts, received_at) "
            "select asset_id, %s, 666, now() from asset where namespace = 'evil'",
            (NOW,),
        )

    found = find_newest(connection, [AssetKey(namespace, name, uid)], NOW)

    assert found[uid].values["active_power_watts"] == 9.0


def test_lives_of_one_name_are_told_apart_the_newest_first(
    query: Query, connection: psycopg.Connection, database_url: str
) -> None:
    with psycopg.connect(database_url, autocommit=True) as writer:
        for uid in ("first", "", "second"):
            writer.execute(
                "insert into asset (namespace, name, uid) values ('north', 'b', %s)", (uid,)
            )

    assert [life.uid for life in find_lives(connection, "north", "b")] == ["second", "first"]
    assert find_lives(connection, "south", "b") == []
