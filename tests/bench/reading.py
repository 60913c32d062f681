"""Reading telemetry by HTTP, beside what PostgreSQL takes for the same rows alone."""

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from tests.api.reading import Site, reading_site
from tests.bench.results import Result
from tests.stack.postgres import READER, PostgresServer
from tests.stack.timescale import find_timescale

from derops_headend.api.routes import telemetry
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.newest import AssetKey, find_newest
from derops_headend.storage.roles import roles_sql
from derops_headend.storage.roll_ups import roll_up

_ASSETS, _DAYS = 2_000, 3
_BATTERY = "battery-0"
_INTERVAL_SECONDS, _OTHERS_SECONDS = 2, 30
_TIMES = 9
_RAW_MILLISECONDS, _STEPS_MILLISECONDS, _NEWEST_MILLISECONDS = 300.0, 15.0, 50.0


def measure() -> Iterator[Result]:
    """One asset with three days of a sample every 2 s, and 2,000 that measured for ten minutes."""
    for engine, installation in (("partitions", None), ("timescale", find_timescale())):
        with PostgresServer(installation=installation) as server:
            url = server.create_for_roles("reading", roles_sql())
            now = datetime.now(UTC).replace(second=0, microsecond=0)
            _fill(url, now)
            yield from asyncio.run(_measure(engine, server.url("reading", READER), now))


def _fill(url: str, now: datetime) -> None:
    WriterDatabase.connect(url, "reading").close()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "insert into asset (namespace, name, uid) "
            "select 'north', 'battery-' || n, 'uid-' || n from generate_series(0, %s) n",
            (_ASSETS - 1,),
        )
        for day in range(-1, _DAYS + 1):
            if _is_partitioned(connection):
                connection.execute(
                    "select ensure_telemetry_day(%s)", ((now - timedelta(days=day)).date(),)
                )
        _insert(connection, "name = 'battery-0'", now, timedelta(days=_DAYS), _INTERVAL_SECONDS)
        _insert(connection, "name <> 'battery-0'", now, timedelta(minutes=10), _OTHERS_SECONDS)
        connection.execute(
            "insert into roll_up_due select distinct asset_id, date_trunc('minute', ts) "
            "from telemetry"
        )
        while roll_up(connection, now, 2_000):
            pass
        connection.execute("vacuum analyze")


def _is_partitioned(connection: psycopg.Connection) -> bool:
    row = connection.execute(
        "select relkind = 'p' from pg_class where oid = 'telemetry'::regclass"
    ).fetchone()
    return row == (True,)


def _insert(
    connection: psycopg.Connection, which: str, now: datetime, span: timedelta, seconds: int
) -> None:
    connection.execute(
        "insert into telemetry (asset_id, ts, active_power_watts, reactive_power_vars, "
        "voltage_volts, frequency_hertz, state_of_charge_percent, setpoint_watts, received_at) "
        "select asset_id, ts, 5000 * sin(extract(epoch from ts) / 3600), 12.5, 230 + random(), 50, "
        "50 + 40 * sin(extract(epoch from ts) / 7200), 5000, ts from asset, "
        f"generate_series(%s::timestamptz, %s, %s) ts where {which}".encode(),
        (now - span, now, timedelta(seconds=seconds)),
    )


async def _measure(engine: str, url: str, now: datetime) -> list[Result]:
    may = {f"get derassets/telemetry north/{_BATTERY}"}
    day = {"from": _instant(now - timedelta(days=1)), "to": _instant(now)}
    path = f"/v1/namespaces/north/assets/{_BATTERY}/telemetry"
    spec = json.dumps({"spec": {"telemetry": {"intervalSeconds": _INTERVAL_SECONDS}}}).encode()
    keys = [AssetKey("north", f"battery-{n}", f"uid-{n}") for n in range(_ASSETS)]
    found: list[Result] = []
    async with reading_site(url, [telemetry.router], may, now) as site:
        site.assets.known = {("north", _BATTERY): ("uid-0", spec)}

        async def get(lines: int, accept: str, **parameters: str) -> None:
            answer = await site.client.get(
                path, params={**day, **parameters}, headers={"Accept": accept}
            )
            assert answer.status_code == 200, answer.text
            assert answer.content.count(b"\n") == lines

        def add(name: str, value: float, limit: float, promised: float) -> None:
            name = f"{name}_{engine}"
            found.append(Result(name=name, value=value, unit="ms", limit=promised))
            found.append(
                Result(name=f"{name}_of_sql", value=value, unit="ms", limit=limit, goal="<= 2")
            )

        samples = int(86_400 / _INTERVAL_SECONDS)
        raw = await _median(lambda: get(samples + 1, "text/csv", resolution="raw"))
        add("read_day_raw", raw, await _sql(site, _RAW, now), _RAW_MILLISECONDS)
        steps = await _median(lambda: get(0, "application/json", resolution="auto"))
        add("read_day_rolled_up", steps, await _sql(site, _STEPS, now), _STEPS_MILLISECONDS)
        newest = await _median(lambda: site.database.read(find_newest, keys, now))
        add("read_newest_of_2000", newest, await _sql(site, _NEWEST, now), _NEWEST_MILLISECONDS)
    print(json.dumps({"load_average": os.getloadavg()}), flush=True)
    return found


_RAW = (
    "select ts, active_power_watts, state_of_charge_percent from telemetry where asset_id = 1 "
    "and ts >= %(now)s - interval '1 day' and ts < %(now)s order by ts"
)
_STEPS = (
    "select bucket, active_power_watts_mean, active_power_watts_min, active_power_watts_max, "
    "state_of_charge_percent_mean from telemetry_1m where asset_id = 1 "
    "and bucket >= %(now)s - interval '1 day' and bucket < %(now)s order by bucket"
)
_NEWEST = (
    "select a.uid, t.* from asset a cross join lateral (select ts, active_power_watts "
    "from telemetry t where t.asset_id = a.asset_id and t.ts > %(now)s - interval '1 hour' "
    "and t.ts <= %(now)s order by ts desc limit 1) t"
)


async def _sql(site: Site, text: str, now: datetime) -> float:
    """Return how long the bare statement takes with its rows fetched, in ms."""

    def fetch(connection: psycopg.Connection) -> Sequence[Any]:
        return connection.execute(text.encode(), {"now": now}, binary=True).fetchall()

    return await _median(lambda: site.database.read(fetch))


async def _median(call: Callable[[], Awaitable[object]]) -> float:
    times = []
    for _ in range(_TIMES):
        begun = time.perf_counter()
        await call()
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


def _instant(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")
