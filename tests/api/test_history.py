"""History by HTTP, on a real database of either engine."""

import csv
import io
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from tests.api.reading import Site, reading_site
from tests.stack.postgres import READER, PostgresServer

from derops_headend.api.routes import history
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.roles import roles_sql

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)
PATH = "/v1/namespaces/site/history"
COUNT = 25


@pytest.fixture(params=["postgres_server", "timescale_server"])
def server(request: pytest.FixtureRequest) -> PostgresServer:
    found: PostgresServer = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def url(server: PostgresServer) -> Iterator[str]:
    """Return the writer's URL; two tenants have dispatches, each tenth of which failed."""
    url = server.create_for_roles("history_api", roles_sql())
    WriterDatabase.connect(url, "log").close()
    with psycopg.connect(url, autocommit=True) as connection:
        for tenant in ("site", "other"):
            connection.execute(
                "with assets as (insert into asset (namespace, name, uid) "
                "select %(tenant)s, 'a' || n, %(tenant)s || n from generate_series(0, 4) n "
                "returning asset_id, name) "
                "insert into dispatch_event (event_id, asset_id, dispatch_uid, dispatch_name, "
                "actor, phase, reason, message, at, received_at, subject, created_by, report, "
                "report_received_at, report_sequence) "
                "select gen_random_uuid(), asset_id, %(tenant)s || '-' || n, 'peak-' || n / 2, "
                "case step when 0 then 'Headend' else 'Agent' end, phase, 'Why', '', "
                "moment + step * interval '1 minute', moment, %(tenant)s || '/' || name, "
                "case when step = 0 then case when n %% 5 = 0 then '=ann' else 'bob' end end, "
                'case when step = 1 then \'{"applied_us": "1700000000000000", '
                '"applied_watts": "-5000", "active_milliseconds": "1500"}\'::jsonb end, '
                "moment, 1 from generate_series(1, %(count)s) n join assets "
                "on name = 'a' || n %% 5, lateral (values (0, 'Submitted'), "
                "(1, case when n %% 10 = 0 then 'Failed' else 'Complete' end)) as s (step, phase), "
                "lateral (select %(begin)s + n * interval '1 hour' as moment) as m",
                {"tenant": tenant, "count": COUNT, "begin": BEGIN},
            )
    yield url
    server.drop_database("history_api")


@pytest.fixture
async def site(url: str, server: PostgresServer) -> AsyncIterator[Site]:
    """Return the routes as a client sees them, with the rights of the reading role."""
    may = {"list dispatches site/"}
    async with reading_site(server.url("history_api", READER), [history.router], may) as site:
        yield site


async def items(site: Site, **query: str) -> list[dict[str, Any]]:
    answer = await site.client.get(PATH, params=query)
    assert answer.status_code == 200, answer.text
    found: list[dict[str, Any]] = answer.json()["items"]
    return found


async def test_a_page_follows_the_other(site: Site) -> None:
    found: list[dict[str, Any]] = []
    sizes, query = [], {"limit": "10"}
    while True:
        body = (await site.client.get(PATH, params=query)).json()
        found += body["items"]
        sizes.append(len(body["items"]))
        if body["next"] is None:
            break
        query = {"limit": "10", "after": body["next"]}

    assert sizes == [10, 10, 5]
    assert [each["uid"] for each in found] == [f"site-{n}" for n in range(COUNT, 0, -1)]
    newest = found[0]
    assert (newest["asset"], newest["name"], newest["createdBy"]) == ("a0", "peak-12", "=ann")
    assert (newest["appliedWatts"], newest["activeSeconds"]) == (-5000, 1.5)
    assert newest["firstAt"] == "2026-11-02T01:00:00Z"
    assert (newest["applied"], newest["endedAt"]) == (True, None)


async def test_what_is_asked_for_is_told_and_no_more(site: Site) -> None:
    async def uids(**query: str) -> list[int]:
        return [int(each["uid"].removeprefix("site-")) for each in await items(site, **query)]

    assert await uids(asset="a3") == [23, 18, 13, 8, 3]
    assert await uids(phase="Failed") == [20, 10]
    assert await uids(createdBy="=ann") == [25, 20, 15, 10, 5]
    assert await uids(dispatch="peak-4") == [9, 8]
    assert await uids(dispatch="site-7") == [7]
    hours = {"since": "2026-11-01T03:00:00Z", "until": "2026-11-01T05:00:00Z"}
    assert await uids(**hours) == [4, 3]
    assert await uids(phase="Failed", asset="a1") == []
    assert await uids(dispatch="other-7") == []
    assert (await site.client.get(PATH, params={"limit": "1"})).json()["next"] is not None


async def test_csv_has_the_same_and_no_formula(site: Site) -> None:
    answer = await site.client.get(PATH, params={"limit": "2"}, headers={"Accept": "text/csv"})

    lines = list(csv.DictReader(io.StringIO(answer.text)))
    first = (await items(site, limit="1"))[0]
    assert answer.headers["content-type"].startswith("text/csv")
    assert list(lines[0]) == list(first)
    assert (lines[0]["createdBy"], lines[1]["createdBy"]) == ("'=ann", "bob")
    assert (lines[0]["appliedWatts"], lines[0]["applied"]) == ("-5000", "true")
    assert lines[0]["firstAt"] == first["firstAt"]
    following = answer.headers["link"].removeprefix("<").partition(">")[0]
    answer = await site.client.get(following, headers={"Accept": "text/csv"})
    assert [line["uid"] for line in csv.DictReader(io.StringIO(answer.text))] == [
        "site-23", "site-22",
    ]  # fmt: skip


async def test_one_is_told_step_by_step(site: Site) -> None:
    body = (await site.client.get(f"{PATH}/site-10")).json()

    assert (body["uid"], body["phase"]) == ("site-10", "Failed")
    assert [(each["actor"], each["phase"]) for each in body["steps"]] == [
        ("Headend", "Submitted"), ("Agent", "Failed"),
    ]  # fmt: skip
    for uid in ("other-10", "peak-4", "site-99", "summary2"):
        assert (await site.client.get(f"{PATH}/{uid}")).status_code == 404


async def test_it_is_summed_up(site: Site) -> None:
    body = (await site.client.get(f"{PATH}/summary")).json()
    restricted = (await site.client.get(f"{PATH}/summary", params={"asset": "a0"})).json()

    assert [(each["phase"], each["dispatches"]) for each in body["items"]] == [
        ("Complete", 23), ("Failed", 2),
    ]  # fmt: skip
    assert body["items"][0]["activeSeconds"] == 23 * 1.5
    assert sum(each["dispatches"] for each in restricted["items"]) == 5


async def test_another_tenants_history_is_none(site: Site) -> None:
    answers = [
        await site.client.get(f"/v1/namespaces/{tenant}/history{more}")
        for tenant in ("other", "nowhere")
        for more in ("", "/summary", "/other-3", "/other-99")
    ]

    bodies = [answer.json() | {"instance": ""} for answer in answers]
    assert {answer.status_code for answer in answers} == {404}
    assert all(body == bodies[0] for body in bodies)
    call = site.records.completed[0][0]
    assert (call.subject.verb, call.subject.resource) == ("list", "dispatches")
    assert call.subject.namespace == "other"


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=0", "limit"), ("limit=501", "limit"), ("limit=1e2", "limit"), ("limit=", "limit"),
        ("after=x", "after"), ("after=WyJhIl0", "after"), ("since=yesterday", "since"),
        ("since=2026-11-01T00:00:00", "since"), ("phase=%00", "phase"), ("asset=A", "asset"),
        ("phase=failed", "phase"),
        ("createdBy=%00", "createdBy"), ("dispatch=" + "x" * 257, "dispatch"), ("more=1", "query"),
        ("limit=1&limit=2", "limit"),
    ],
)  # fmt: skip
async def test_what_makes_no_sense_is_refused(site: Site, query: str, parameter: str) -> None:
    answer = await site.client.get(f"{PATH}?{query}")

    assert answer.status_code == 422, answer.text
    assert parameter in [each.get("parameter") for each in answer.json()["errors"]]


async def test_what_cannot_be_answered_in_is_refused(site: Site) -> None:
    for path in ("", "/summary", "/site-1"):
        answer = await site.client.get(PATH + path, headers={"Accept": "application/xml"})
        assert answer.status_code == 406


async def test_while_rows_are_missing_the_truth_is_told(site: Site, url: str) -> None:
    before = await items(site)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("update dispatch_backfill set done_at = null")
        connection.execute("delete from dispatch where asset_name = 'a1'")

    assert await items(site) == before
    assert BEGIN + timedelta(hours=COUNT) == datetime.fromisoformat(before[0]["firstAt"])
