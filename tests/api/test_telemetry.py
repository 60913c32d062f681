"""Telemetry by HTTP, on a real database of either engine."""

import csv
import io
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import psycopg
import pytest
from tests.api.reading import Site, reading_site
from tests.headend.storage.storing import (
    MINUTE_US,
    NOW,
    Sample,
    Store,
    roll_up_all,
    us,
)
from tests.headend.writing.making import report, sources, transition
from tests.stack.postgres import READER, PostgresServer

from derops.wire.v1 import dispatch_pb2
from derops_headend.api.routes import telemetry
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.roles import roles_sql

NAMESPACE, NAME, UID = "site", "battery", "asset-uid"
PATH = f"/v1/namespaces/{NAMESPACE}/assets/{NAME}"
MAY = {f"get derassets/telemetry {NAMESPACE}/{NAME}"}


@pytest.fixture(params=["postgres_server", "timescale_server"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    """Return the writer's URL."""
    yield server.create_for_roles("telemetry_api", roles_sql())
    server.drop_database("telemetry_api")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    database = WriterDatabase.connect(url, "log")
    yield Store(database)
    database.close()


@pytest.fixture
async def site(store: Store, server: PostgresServer) -> AsyncIterator[Site]:
    """Return the routes as a client sees them; they have the rights of the reading role."""
    async with reading_site(server.url("telemetry_api", READER), [telemetry.router], MAY) as site:
        site.assets.known = {(NAMESPACE, NAME): (UID, _asset(10))}
        yield site


def _asset(interval_seconds: int) -> bytes:
    return json.dumps({"spec": {"telemetry": {"intervalSeconds": interval_seconds}}}).encode()


def at(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def execute(url: str, text: str, *arguments: object) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(text.encode(), arguments or None)


async def get(site: Site, what: str = "telemetry", **parameters: Any) -> dict[str, Any]:
    parameters = {key.rstrip("_"): value for key, value in parameters.items()}
    answer = await site.client.get(f"{PATH}/{what}", params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["cache-control"] == "no-store"
    body: dict[str, Any] = answer.json()
    return body


def faults(answer: httpx.Response, status: int = 422, slug: str = "invalid") -> list[str]:
    """Return the parameters that a problem names."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"].endswith(f"/{slug}")
    return [each["parameter"] for each in body.get("errors", [])]


async def test_samples_are_answered_in_columns_as_they_were_measured(
    site: Site, store: Store
) -> None:
    begin = NOW - timedelta(minutes=30)
    store([Sample(us(begin) + 10_000_000 * n, 100.5 * n, 230.0) for n in range(3)])

    body = await get(
        site, from_=at(begin), to=at(begin + timedelta(seconds=30)),
        quantities="activePowerWatts,voltageVolts,setpointWatts",
    )  # fmt: skip

    begin_ms = us(begin) // 1000
    assert body == {
        "namespace": NAMESPACE,
        "name": NAME,
        "uid": UID,
        "otherUids": [],
        "from": at(begin).replace("Z", ".000Z"),
        "to": at(begin + timedelta(seconds=30)).replace("Z", ".000Z"),
        "resolution": "raw",
        "stepSeconds": None,
        "source": "telemetry",
        "units": {"activePowerWatts": "W", "voltageVolts": "V", "setpointWatts": "W"},
        "sign": "positive = into the grid",
        "staleAfterSeconds": 30,
        "time": [begin_ms, begin_ms + 10_000, begin_ms + 20_000],
        "activePowerWatts": [0.0, 100.5, 201.0],
        "voltageVolts": [230.0, 230.0, 230.0],
        "setpointWatts": [None, None, None],
        "gaps": [],
        "hasMoreGaps": False,
    }
    ((call, status, _, sent_bytes),) = site.records.completed
    subject = call.subject
    assert (status, subject.verb, subject.resource) == (200, "get", "derassets/telemetry")
    assert (subject.namespace, subject.name, subject.object_uid) == (NAMESPACE, NAME, UID)
    assert sent_bytes > 100


async def test_the_model_that_is_described_is_what_is_answered(
    site: Site, store: Store, url: str
) -> None:
    from derops_headend.api.telemetry_models import COLUMNS, Telemetry

    store([Sample(us(NOW) - 3_600_000_000, 5.0), Sample(us(NOW) - 10_000_000, 5.0)])
    for resolution in ("raw", "1m", "15m"):
        body = await get(
            site, from_=at(NOW - timedelta(hours=2)), quantities=",".join(COLUMNS),
            resolution=resolution,
        )  # fmt: skip
        Telemetry.model_validate_json(json.dumps(body))


async def test_a_longer_time_is_answered_in_steps_with_what_is_new_marked(
    site: Site, store: Store, url: str
) -> None:
    begin = NOW - timedelta(days=2)
    store([Sample(us(begin) + 600_000_000 * n, 1000.0 / 3) for n in range(200)])
    roll_up_all(url)
    store([Sample(us(NOW) - 60_000_000, -50.0)])

    body = await get(
        site, from_=at(begin), to=at(NOW), maxPoints=200,
        quantities="activePowerWatts,maxLoadWatts,energyInjectedWattHours",
    )  # fmt: skip

    assert (body["resolution"], body["stepSeconds"]) == ("15m", 900)
    assert 10 < len(body["time"]) <= 200
    assert body["from"] <= at(begin)
    assert body["activePowerWatts"]["mean"][0] == 333.3333
    # Where a quarter has just begun, its step has nothing but power that is held.
    assert [each for each in body["activePowerWatts"]["min"] if each is not None][-1] == -50.0
    assert body["energyInjectedWattHours"].keys() == {"sum"}
    assert body["omitted"] == ["maxLoadWatts"]
    assert body["units"] == {"activePowerWatts": "W", "energyInjectedWattHours": "Wh"}
    assert len(body["provisional"]) == 1
    assert body["provisional"][0]["from"] < at(NOW)


async def test_steps_come_with_the_setpoints_that_the_device_had(site: Site, store: Store) -> None:
    begin = NOW - timedelta(hours=20)
    store([Sample(us(begin), 100.0)])
    applied_us, ended_us = us(begin + timedelta(hours=1)), us(begin + timedelta(hours=2))
    held = report(
        "Acked", "Active", "Complete", sequence=1, applied_us=applied_us, ended_us=ended_us,
        reverted_us=ended_us + 1_000_000, applied_watts=-2500,
    )  # fmt: skip
    message = dispatch_pb2.DispatchReport.FromString(held.body)
    for step in message.transitions:
        step.at_us = applied_us
    held.body = message.SerializeToString()
    held_at = begin + timedelta(hours=1)
    ordered = transition("Submitted", at_us=us(begin))
    store.database.store(
        sources(ordered, held, offset=store.offset + 1),
        after=store.offset,
        through=store.offset + 1,
    )

    asked: dict[str, Any] = {
        "quantities": "activePowerWatts,setpointWatts",
        "to": at(NOW),
        "maxPoints": 2000,
    }
    body = await get(site, from_=at(NOW - timedelta(days=1)), **asked)
    later = await get(site, from_=at(begin + timedelta(hours=3)), resolution="1m", **asked)

    assert body["resolution"] == "1m"
    assert [(each["watts"], each["dispatch"]) for each in body["setpoints"]] == [(-2500, "peak")]
    assert body["setpoints"][0]["from"] == at(held_at).replace("Z", ".000Z")
    assert body["omitted"] == ["setpointWatts"]
    assert later["setpoints"] == []


async def test_holes_are_told_with_why_and_never_filled(site: Site, store: Store, url: str) -> None:
    begin = NOW - timedelta(minutes=50)
    store([Sample(us(begin) + 10_000_000 * n, 1.0) for n in range(60)])
    store([Sample(us(begin) + 20 * MINUTE_US + 10_000_000 * n, 1.0) for n in range(180)])
    lost = (begin + timedelta(minutes=12), begin + timedelta(minutes=15))
    execute(
        url,
        "insert into telemetry_gap select min(asset_id), 'o', 18446744073709551615, %s, %s, 18, "
        "'OutboxFull', now() from asset",
        *lost,
    )

    body = await get(site, from_=at(begin - timedelta(minutes=5)), to=at(NOW))

    told = [(each["reason"], each["from"][11:19], each["to"][11:19]) for each in body["gaps"]]
    clock = {minutes: f"{begin + timedelta(minutes=minutes):%H:%M:%S}" for minutes in range(-5, 21)}
    assert told == [
        ("OutboxFull", clock[12], clock[15]),
        ("NoSamples", clock[-5], clock[0]),
        ("NoSamples", f"{begin + timedelta(seconds=590):%H:%M:%S}", clock[20]),
    ]
    assert body["gaps"][0]["samples"] == 18
    listed = await get(site, "gaps")
    assert [(each["reason"], each["samples"]) for each in listed["items"]] == [("OutboxFull", 18)]
    assert listed["next"] is None


async def test_csv_has_names_with_units_and_exact_times(site: Site, store: Store) -> None:
    begin = NOW - timedelta(minutes=30)
    store([Sample(us(begin) + 123_456, 5000.25)])

    answer = await site.client.get(
        f"{PATH}/telemetry", params={"resolution": "raw"}, headers={"Accept": "text/csv"}
    )

    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/csv")
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert list(csv.reader(io.StringIO(answer.text))) == [
        ["time", "activePowerWatts", "stateOfChargePercent"],
        [at(begin + timedelta(microseconds=123_456)), "5000.25", ""],
    ]


async def test_two_devices_of_one_name_are_never_one_line(
    site: Site, store: Store, url: str
) -> None:
    store([Sample(us(NOW) - 60_000_000, 1.0)])
    execute(url, "insert into asset (namespace, name, uid) values (%s, %s, 'old')", NAMESPACE, NAME)
    execute(
        url,
        "insert into telemetry (asset_id, ts, active_power_watts, received_at) "
        "select asset_id, %s, 666, now() from asset where uid = 'old'",
        NOW - timedelta(minutes=2),
    )

    assert (await get(site))["activePowerWatts"] == [1.0]
    old = await get(site, uid="old")
    assert (old["uid"], old["activePowerWatts"], old["otherUids"]) == ("old", [666], [UID])
    assert site.assets.known is not None
    site.assets.known.clear()
    assert (await get(site))["uid"] == "old", "the one that came last, where none is there now"
    site.assets.known[NAMESPACE, NAME] = ("newest", _asset(10))
    assert (await get(site))["time"] == []
    answer = await site.client.get(f"{PATH}/telemetry", params={"uid": "other"})
    assert faults(answer, 404, "not-found") == []


async def test_telemetry_is_there_while_kubernetes_is_away(site: Site, store: Store) -> None:
    store([Sample(us(NOW) - 60_000_000, 1.0)])
    site.assets.known = None

    assert (await get(site))["activePowerWatts"] == [1.0]


async def test_who_may_not_and_what_is_not_are_told_alike(site: Site, store: Store) -> None:
    store([Sample(us(NOW) - 60_000_000, 1.0)])
    site.rights.may["alice"].add(f"get derassets/telemetry {NAMESPACE}/nothing")
    bodies = []
    for name in ("nothing", "foreign"):
        for what in ("telemetry", "gaps", "connections", "measurements"):
            answer = await site.client.get(f"/v1/namespaces/{NAMESPACE}/assets/{name}/{what}")
            faults(answer, 404, "not-found")
            bodies.append(answer.json() | {"instance": ""})
    assert all(body == bodies[0] for body in bodies)


async def test_a_page_of_connections_follows_the_one_before(
    site: Site, store: Store, url: str
) -> None:
    store([Sample(us(NOW) - 60_000_000, 1.0)])
    execute(
        url,
        "insert into connection_event select 'log', n / 3, n %% 3, "
        "(select min(asset_id) from asset), "
        "'Connected', 'r' || n, '', 18446744073709551615, 'peer', '01', 'gateway-0', "
        "%s - (n / 5) * interval '1 minute' from generate_series(0, 20) n",
        NOW - timedelta(minutes=1),
    )

    found, after = [], ""
    while True:
        page = await get(site, "connections", limit=4, **({"after": after} if after else {}))
        assert len(page["items"]) <= 4
        found += page["items"]
        after = page["next"]
        if after is None:
            break
    assert sorted(each["reason"] for each in found) == sorted(f"r{n}" for n in range(21))
    assert [each["at"] for each in found] == sorted((each["at"] for each in found), reverse=True)
    assert found[0]["epoch"] == "18446744073709551615"


async def test_gaps_come_in_pages(site: Site, store: Store, url: str) -> None:
    store([Sample(us(NOW) - 60_000_000, 1.0)])
    execute(
        url,
        "insert into telemetry_gap select min(asset_id), 'o', 18446744073709551600 + n, %s, %s, n, "
        "'Full', now() from asset, generate_series(0, 6) n group by n",
        NOW - timedelta(minutes=3),
        NOW - timedelta(minutes=2),
    )

    first = await get(site, "gaps", limit=4)
    second = await get(site, "gaps", limit=4, after=first["next"])

    told = [each["samples"] for page in (first, second) for each in page["items"]]
    assert told == [6, 5, 4, 3, 2, 1, 0]
    assert second["next"] is None


async def test_a_measurement_without_a_column_is_read_by_its_name(
    site: Site, store: Store, url: str
) -> None:
    store([Sample(us(NOW) - 60_000_000, 1.0)])
    for name in ("fan speed/1", "cell_01"):
        execute(
            url,
            "insert into measurement select (select min(asset_id) from asset), %s, "
            "%s - n * interval '1 second', n from generate_series(1, 5) n",
            name,
            NOW,
        )

    assert (await get(site, "measurements"))["names"] == ["cell_01", "fan speed/1"]
    first = await get(site, "measurements", measurement="fan speed/1", limit=3)
    assert first["values"] == [5, 4, 3]
    rest = await get(
        site, "measurements", measurement="fan speed/1", from_=first["next"], to=at(NOW)
    )
    assert (rest["values"], rest["next"]) == ([2, 1], None)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "application/json"), ("*/*", "application/json"), ("text/csv", "text/csv"),
        ("text/*", "text/csv"), ("text/csv;q=0.5, application/json", "application/json"),
        ("application/json;q=0.1,text/csv;q=0.2", "text/csv"),
        ("text/csv;q=0, */*", "application/json"), ("text/html, */*;q=0.1", "application/json"),
        ("text/html", None), ("application/xml;q=1", None), ("text/csv;q=0", None),
        ("x" * 500, None),
    ],
)  # fmt: skip
async def test_a_client_gets_what_it_takes_or_hears_that_there_is_none(
    site: Site, store: Store, accept: str, kind: str | None
) -> None:
    store([Sample(us(NOW) - 60_000_000, 1.0)])
    answer = await site.client.get(f"{PATH}/telemetry", headers={"Accept": accept})
    if kind is None:
        faults(answer, 406, "not-acceptable")
    else:
        assert answer.headers["content-type"].startswith(kind)
    if "json" not in accept and "*/*" not in accept and accept:
        faults(
            await site.client.get(f"{PATH}/gaps", headers={"Accept": accept}), 406, "not-acceptable"
        )
