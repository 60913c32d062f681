"""Requests = records: counted under load, and when the API is killed in the middle of it."""

import json
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from tests.api.rig import ApiProcess, make_tenant
from tests.headend.storage.test_audit_command import run
from tests.stack.controlplane import ControlPlane
from tests.stack.postgres import API, PostgresServer
from tests.waiting import until

from derops_headend.storage.roles import roles_sql
from derops_headend.storage.schema import migrate

NAMESPACE = "counted"
PATH = f"/v1/namespaces/{NAMESPACE}/dispatches"
ORDER: dict[str, Any] = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}
CALLERS, ORDERS = 6, 12
"""How many at once, and how many orders of each, where nothing is killed."""

KILLED_AFTER = (30, 70, 110)
"""So many answers came in a round when the API was killed."""

RECEIVED, COMPLETE = "RequestReceived", "ResponseComplete"


@dataclass(slots=True)
class Tally:
    """What clients count, without a look at the server."""

    sent: int = 0
    answers: list[httpx.Response] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def call(self, client: httpx.Client, method: str, path: str, **given: Any) -> httpx.Response:
        with self.lock:
            self.sent += 1
        answer = client.request(method, path, **given)
        with self.lock:
            self.answers.append(answer)
        return answer

    def of(self, status: int, method: str, ending: str) -> list[str]:
        """Return the ids of the requests that were answered so."""
        return [
            each.headers["x-request-id"]
            for each in self.answers
            if each.status_code == status
            and each.request.method == method
            and each.request.url.path.endswith(ending)
        ]


def order_and_cancel(api: ApiProcess, token: str, tally: Tally, keys: Iterator[str]) -> None:
    """Call until the API is gone: reads, orders, cancels."""
    with api.client(token) as client, suppress(httpx.TransportError):
        for key in keys:
            tally.call(client, "GET", "/v1/me")
            made = tally.call(client, "POST", PATH, json=ORDER, headers={"Idempotency-Key": key})
            if made.status_code == 201:
                tally.call(client, "POST", f"{PATH}/{made.json()['name']}/cancel")


def load(api: ApiProcess, token: str, tally: Tally, name: str, kill_after: int | None) -> None:
    """Have several clients call at once; kill the API once it gave so many answers."""
    known = len(tally.answers)
    with ThreadPoolExecutor(CALLERS) as pool:
        working = [
            pool.submit(
                order_and_cancel,
                api,
                token,
                tally,
                (f"{name}-{caller}-{number}" for number in range(ORDERS)),
            )
            for caller in range(CALLERS)
        ]
        if kill_after is not None:
            while len(tally.answers) - known < kill_after:
                threading.Event().wait(0.002)
            api.process.kill()
    for each in working:
        each.result()


def recorded(url: str) -> dict[str, Counter[str]]:
    """Return how many records of each stage each request has."""
    found: dict[str, Counter[str]] = {}
    with psycopg.connect(url, autocommit=True) as connection:
        for request, stage in connection.execute(
            "select request_id, stage from audit_event where request_id <> ''"
        ):
            found.setdefault(request, Counter())[stage] += 1
    return found


def dispatches(kube: ControlPlane) -> dict[str, str]:
    """Return by name the request that each Dispatch says it was made by."""
    listed = json.loads(kube.kubectl("get", "dispatches", "-n", NAMESPACE, "-o", "json"))["items"]
    return {
        each["metadata"]["name"]: each["metadata"]["annotations"]["derops.io/request-id"]
        for each in listed
    }


def announced(url: str) -> dict[str, str]:
    """Return by request the name of the Dispatch that was announced."""
    with psycopg.connect(url, autocommit=True) as connection:
        return dict(
            connection.execute(
                "select request_id, name from audit_event where stage = %s and verb = 'create'",
                (RECEIVED,),
            ).fetchall()
        )


@pytest.fixture
def own_database(postgres_server: PostgresServer) -> Iterator[str]:
    """Return the writer's URL of a database that has no records but ours."""
    url = postgres_server.create_for_roles("counted", roles_sql())
    with psycopg.connect(url) as connection:
        migrate(connection)
    yield url
    postgres_server.drop_database("counted")


@pytest.mark.timeout(600)  # the API is started four times
async def test_each_answer_has_its_records_also_when_the_api_is_killed(
    kube: ControlPlane,
    postgres_server: PostgresServer,
    own_database: str,
    api_config: str,
    tmp_path: Path,
) -> None:
    token = make_tenant(kube, NAMESPACE).token("dispatcher")
    tally, url = Tally(), postgres_server.url("counted", API)
    for kill_after in (*KILLED_AFTER, None):
        with ApiProcess(tmp_path / "api", api_config, url) as api:
            load(api, token, tally, f"after-{kill_after}", kill_after)
            if kill_after is None:
                await until(
                    lambda: set(recorded(own_database)) >= answered(tally), patience_seconds=60
                )
    records, made = recorded(own_database), dispatches(kube)
    orders, cancels = tally.of(201, "POST", "/dispatches"), tally.of(200, "POST", "/cancel")

    assert len(answered(tally)) == len(tally.answers) >= sum(KILLED_AFTER) + CALLERS * ORDERS
    assert {records[each][COMPLETE] for each in answered(tally)} == {1}
    assert {records[each][RECEIVED] for each in orders + cancels} == {1}
    assert {count for each in records.values() for count in each.values()} == {1}
    assert len(tally.answers) <= len(records) <= tally.sent
    assert set(orders) <= set(made.values())
    assert {name: announced(own_database)[request] for name, request in made.items()} == {
        name: name for name in made
    }
    assert_verifies(own_database, tmp_path / "api" / "logs" / "api.log")


def answered(tally: Tally) -> set[str]:
    """Return the requests that were answered; one too many is refused without a record."""
    return {each.headers["x-request-id"] for each in tally.answers if each.status_code != 429}


def assert_verifies(url: str, heads: Path) -> None:
    """Verify the chain, and the heads that all of the processes printed."""
    assert heads.read_text().count("audit.head")
    told = run(url, "verify", "--heads", heads)
    assert told.returncode == 0, told.stdout + told.stderr
    assert "all is as it was written down" in told.stdout
