"""Attacks of whoever may read the telemetry of one asset: by what is asked, how often, how slowly.

And of an agent, by what it has stored, on those who read. The routes and the database are real; who
may what is said by the test.
"""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta

import psycopg
import pytest
import uvicorn
from tests.api.reading import Site, reading_site
from tests.headend.storage.storing import NOW, Sample, Store, us
from tests.stack.postgres import READER, PostgresServer
from tests.waiting import now

from derops_headend.api import exports
from derops_headend.api.database import TURN_SECONDS
from derops_headend.api.routes import telemetry
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.newest import AssetKey, find_newest
from derops_headend.storage.roles import roles_sql

PATH = "/v1/namespaces/site/assets/battery"
MAY = {"get derassets/telemetry site/battery"}
STATEMENT_MILLISECONDS = 1000


@pytest.fixture
def url(postgres_server: PostgresServer) -> Iterator[str]:
    yield postgres_server.create_for_roles("hostile_reader", roles_sql())
    postgres_server.drop_database("hostile_reader")


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    database = WriterDatabase.connect(url, "log")
    yield Store(database)
    database.close()


@pytest.fixture
async def site(store: Store, postgres_server: PostgresServer) -> AsyncIterator[Site]:
    store([Sample(us(NOW) - 60_000_000, 1.0)])
    async with reading_site(
        postgres_server.url("hostile_reader", READER),
        [telemetry.router],
        MAY,
        connections=3,
        statement_milliseconds=STATEMENT_MILLISECONDS,
    ) as site:
        site.assets.known = {("site", "battery"): ("asset-uid", b"{}")}
        yield site


def execute(url: str, text: str, *arguments: object) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(text.encode(), arguments or None)


EVIL = "EVIL'\"<;drop"
WRONG: list[tuple[str, str, str]] = [
    ("telemetry", "from=2026-11-30T12:00:00Z&to=2026-11-30T11:00:00Z", "from"),
    ("telemetry", "from=2026-11-30T12:00:00Z&to=2026-11-30T12:00:00Z", "from"),
    ("telemetry", "from=2016-11-30T12:00:00Z&to=2026-11-30T12:00:00Z&resolution=raw", "from"),
    ("telemetry", "from=2025-11-30T12:00:00Z&to=2026-11-30T12:00:00Z&resolution=raw", "resolution"),
    ("telemetry", "from=2025-11-30T12:00:00Z&to=2026-11-30T12:00:00Z&resolution=1m", "resolution"),
    ("telemetry", "from=9999-12-31T23:59:59Z", "from"),
    ("telemetry", "from=0001-01-01T00:00:00Z", "from"),
    ("telemetry", "from=2026-02-30T12:00:00Z", "from"),
    ("telemetry", "from=2020-01-30", "from"),
    ("telemetry", "from=2026-11-30T12:00:00%2B01:00", "from"),
    ("telemetry", "from=1796040000", "from"),
    ("telemetry", "from=infinity", "from"),
    ("telemetry", "from=%D9%A2026-11-30T12:00:00Z", "from"),
    ("telemetry", "to=", "to"),
    ("telemetry", "to=2026-11-30T12:00:00Z%00", "to"),
    ("telemetry", "maxPoints=1000000000", "maxPoints"),
    ("telemetry", "maxPoints=1e3", "maxPoints"),
    ("telemetry", "maxPoints=-1", "maxPoints"),
    ("telemetry", "maxPoints=%D9%A2%D9%A2%D9%A2", "maxPoints"),
    ("telemetry", "maxPoints=" + "9" * 400, "maxPoints"),
    ("telemetry", "quantities=" + ",".join(["activePowerWatts"] * 150), "quantities"),
    ("telemetry", "quantities=" + ",".join(f"q{n}" for n in range(700)), "quantities"),
    ("telemetry", "quantities=unknownQuantity", "quantities"),
    ("telemetry", "quantities=ts;drop", "quantities"),
    ("telemetry", "quantities=ts", "quantities"),
    ("telemetry", "quantities=", "quantities"),
    ("telemetry", "quantities=activePowerWatts,", "quantities"),
    ("telemetry", "quantities=active_power_watts", "quantities"),
    ("telemetry", f"resolution={EVIL}", "resolution"),
    ("telemetry", "resolution=raw&resolution=1m", "resolution"),
    ("telemetry", f"uid={EVIL}", "uid"),
    ("telemetry", "uid=a%00", "uid"),
    ("gaps", "limit=0", "limit"),
    ("gaps", "limit=100000", "limit"),
    ("gaps", f"after={EVIL}", "after"),
    ("gaps", "after=e30", "after"),
    ("gaps", "after=WyJ4IiwgIm8iLCAiMSJd", "after"),  # no time
    ("gaps", "after=WyIyMDI2LTExLTMwVDEyOjAwOjAwWiIsICJvXHUwMDAwIiwgIjEiXQ", "after"),  # NUL
    ("gaps", "after=WyIyMDI2LTExLTMwVDEyOjAwOjAwWiIsICJvIiwgIi0xIl0", "after"),  # below 0
    ("connections", "after=" + "W1" * 200, "after"),
    ("connections", "after=" + "A" * 501, "after"),
    ("measurements", "measurement=%00", "measurement"),
    ("measurements", "limit=5001", "limit"),
]


async def test_what_nobody_could_mean_is_refused_before_the_database_hears_of_it(
    site: Site, url: str
) -> None:
    """R30: times, numbers, names and places of pages that are wrong, huge or SQL."""
    with psycopg.connect(url) as writer:
        # Nobody could read meanwhile: what is refused was not looked for.
        writer.execute("lock table asset in access exclusive mode")
        for what, query, parameter in WRONG:
            begun = now()
            answer = await site.client.get(f"{PATH}/{what}?{query}")
            assert answer.status_code == 422, (query, answer.text)
            assert [each["parameter"] for each in answer.json()["errors"]] == [parameter], query
            assert now() - begun < STATEMENT_MILLISECONDS / 1000, query
            for word in (
                "EVIL",
                "drop",
                "unknownQuantity",
                "q699",
                "9999",
                "1796040000",
                "infinity",
            ):
                assert word not in answer.text


async def test_no_uid_opens_what_has_another_name(site: Site, url: str) -> None:
    """R31: the uid of another tenant's asset, or of another asset of the same namespace."""
    for namespace, name, uid in (("other", "battery", "foreign"), ("site", "pv", "neighbour")):
        execute(
            url,
            "insert into asset (namespace, name, uid) values (%s, %s, %s)",
            namespace,
            name,
            uid,
        )
        for what in ("telemetry", "gaps", "connections", "measurements"):
            answer = await site.client.get(f"{PATH}/{what}", params={"uid": uid})
            assert answer.status_code == 404


async def test_nobody_stores_samples_into_anothers_line(
    site: Site, url: str, postgres_server: PostgresServer
) -> None:
    """R32: an agent names the uid of another tenant's asset in what it sends."""
    execute(url, "insert into asset (namespace, name, uid) values ('evil', 'x', 'asset-uid')")
    execute(
        url,
        "insert into telemetry (asset_id, ts, active_power_watts, received_at) "
        "select asset_id, %s, 666, now() from asset where namespace = 'evil'",
        NOW - timedelta(seconds=5),
    )

    body = (await site.client.get(f"{PATH}/telemetry")).json()
    assert body["activePowerWatts"] == [1.0]
    newest = await site.database.read(find_newest, [AssetKey("site", "battery", "asset-uid")], NOW)
    assert newest["asset-uid"].values["active_power_watts"] == 1.0


async def test_slow_statements_end_and_leave_all_connections_free(site: Site, url: str) -> None:
    """R33: questions that take longer than they may, more of them than there are connections."""
    with psycopg.connect(url) as writer:
        writer.execute("lock table telemetry in access exclusive mode")
        begun = now()
        answers = await asyncio.gather(*(site.client.get(f"{PATH}/telemetry") for _ in range(4)))
        assert now() - begun < TURN_SECONDS
        for answer in answers:
            assert answer.status_code == 503
            assert answer.headers["retry-after"].isdigit()
            assert answer.json()["type"].endswith("/database-unavailable")
        assert (await site.client.get(f"{PATH}/gaps")).status_code == 200
    answers = await asyncio.gather(*(site.client.get(f"{PATH}/telemetry") for _ in range(6)))
    assert [answer.status_code for answer in answers] == [200] * 6
    with psycopg.connect(url) as writer:
        (waiting,) = writer.execute(
            "select count(*) from pg_stat_activity where usename = 'derops_reader' "
            "and state <> 'idle'"
        ).fetchone() or (None,)
        assert waiting == 0


@asynccontextmanager
async def listening(site: Site) -> AsyncIterator[int]:
    """Serve on a real port, with send buffers that are soon full."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
        server = uvicorn.Server(
            uvicorn.Config(site.app, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await serving


async def test_a_client_that_stops_reading_holds_its_own_place_and_no_longer_than_it_may(
    site: Site, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R34: megabytes are asked for, and never read."""
    monkeypatch.setattr(exports, "SEND_SECONDS", 1.5)
    execute(
        url,
        "insert into telemetry (asset_id, ts, active_power_watts, received_at) "
        "select (select min(asset_id) from asset), %s - n * interval '40 ms', n, now() "
        "from generate_series(1, 90000) n on conflict do nothing",
        NOW - timedelta(seconds=1),
    )
    head = (
        f"GET {PATH}/telemetry?resolution=raw HTTP/1.1\r\nHost: api\r\n"
        "Authorization: Bearer alice\r\nAccept: text/csv\r\n\r\n"
    )
    asked = {"resolution": "raw"}
    accept = {"Accept": "text/csv"}
    async with listening(site) as port:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, head.encode())
            assert await loop.sock_recv(client, 12) == b"HTTP/1.1 200"
            again = await site.client.get(f"{PATH}/telemetry", params=asked, headers=accept)
            assert again.status_code == 429
            site.rights.may["bob"] = site.rights.may["alice"]
            other = await site.client.get(
                f"{PATH}/telemetry", params=asked,
                headers={**accept, "Authorization": "Bearer bob"},
            )  # fmt: skip
            assert other.status_code == 200
            assert other.content.count(b"\n") > 80_000
            with psycopg.connect(url) as writer:
                open_transactions = writer.execute(
                    "select count(*) from pg_stat_activity where usename = 'derops_reader' "
                    "and xact_start is not null"
                ).fetchone()
            assert open_transactions == (0,)
            async with asyncio.timeout(60):
                while again.status_code == 429:
                    await asyncio.sleep(0.05)
                    again = await site.client.get(f"{PATH}/telemetry", params=asked, headers=accept)
            assert again.status_code == 200
    cut = [each for each in site.records.completed if each[2] == "aborted"]
    assert len(cut) == 1, "what was not sent to its end is recorded as that"


async def test_large_answers_of_all_callers_are_few(site: Site) -> None:
    """R35: one caller asks for many at once, and many callers do."""
    site.rights.may |= {f"caller-{n}": MAY for n in range(12)}

    async def ask(caller: str) -> int:
        answer = await site.client.get(
            f"{PATH}/telemetry",
            headers={"Accept": "text/csv", "Authorization": f"Bearer {caller}"},
        )
        return answer.status_code

    of_one = await asyncio.gather(*(ask("alice") for _ in range(6)))
    assert sorted(of_one) == [200, 429, 429, 429, 429, 429]
    of_many = await asyncio.gather(*(ask(f"caller-{n}") for n in range(12)))
    assert of_many.count(200) >= exports.AT_ONCE
    assert of_many.count(429) == 12 - of_many.count(200) > 0
    assert exports.PLACES._held.total() == 0
    assert await ask("alice") == 200


async def test_names_of_measurements_are_only_text_and_only_so_many(site: Site, url: str) -> None:
    """R36: an agent stores ten thousand measurements with names that mean something elsewhere."""
    for name in ('=cmd|" /C calc"!A0', '"},{"uid":"x', "<script>", "\u202e\ud7ff"):
        execute(
            url, "insert into measurement select min(asset_id), %s, %s, 1 from asset",
            name, NOW - timedelta(minutes=1),
        )  # fmt: skip
        body = (await site.client.get(f"{PATH}/measurements", params={"measurement": name})).json()
        assert name in body["names"]
        assert body["values"] == [1]
    execute(
        url,
        "insert into measurement select (select min(asset_id) from asset), 'n' || n, %s, 1 "
        "from generate_series(1, 10000) n",
        NOW - timedelta(minutes=1),
    )
    answer = await site.client.get(f"{PATH}/measurements")
    assert len(answer.json()["names"]) == telemetry.MOST_NAMES
    assert len(answer.content) < 20_000


async def test_an_agent_that_measures_too_often_makes_no_answer_longer(
    site: Site, url: str
) -> None:
    """R37: a thousand samples a second, of an asset that is to measure every ten."""
    execute(
        url,
        "insert into telemetry (asset_id, ts, active_power_watts, received_at) "
        "select (select min(asset_id) from asset), %s - n * interval '1 ms', n, now() "
        "from generate_series(1, 50000) n on conflict do nothing",
        NOW - timedelta(seconds=1),
    )
    execute(
        url,
        "insert into telemetry_gap select (select min(asset_id) from asset), 'o', n, "
        "%s - n * interval '1 ms', %s, 1, 'Full', now() from generate_series(1, 3000) n",
        NOW - timedelta(minutes=5),
        NOW,
    )

    answer = await site.client.get(f"{PATH}/telemetry", params={"maxPoints": 100})

    body = answer.json()
    assert 0 < len(body["time"]) <= 100
    assert body["resolution"] == "1m"
    assert len(body["gaps"]) == 500
    assert body["hasMoreGaps"]
    refused = await site.client.get(f"{PATH}/telemetry", params={"resolution": "raw"})
    assert refused.status_code == 422


async def test_a_sample_from_the_future_hides_no_silence(site: Site, store: Store) -> None:
    """R38: an agent dates one sample days ahead, so that its value never looks old."""
    store([Sample(us(NOW + timedelta(days=1)), 7.0)])

    newest = await site.database.read(find_newest, [AssetKey("site", "battery", "asset-uid")], NOW)

    assert newest["asset-uid"].age_seconds == 60
    assert newest["asset-uid"].values["active_power_watts"] == 1.0
    later = await site.client.get(f"{PATH}/telemetry")
    assert later.json()["activePowerWatts"] == [1.0]
    assert json.loads(later.content)["gaps"]
