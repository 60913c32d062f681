"""A client that repeats its call at each failure: real processes, killed and cut off in between.

No writer runs here: what a key was used for is known without it.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from tests.api.cutting import CutProxy
from tests.api.fixtures import StartApi
from tests.api.rig import ApiProcess, Tenant, make_tenant, problem
from tests.crds.manifests import BATTERY, merged
from tests.stack.controlplane import ControlPlane
from tests.stack.processes import http_ok

ORDER: dict[str, Any] = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}
PATH = "/v1/namespaces/repeats/dispatches"
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def token(kube: ControlPlane) -> str:
    tenant: Tenant = make_tenant(kube, "repeats")
    kube.apply(merged(BATTERY, {"metadata": {"namespace": "repeats"}}))
    return tenant.token("dispatcher")


@pytest.fixture
def proxy(kube: ControlPlane) -> Iterator[CutProxy]:
    with CutProxy(kube.server) as running:
        yield running


@pytest.fixture
def cut_api(start_api: StartApi, proxy: CutProxy, api_config: str, tmp_path: Path) -> ApiProcess:
    """Return an API that speaks to Kubernetes through the proxy."""
    return start_api(config=proxy.kubeconfig(api_config, tmp_path))


class Caller:
    """One client with one order, which it repeats by one key."""

    def __init__(self, token: str, key: str, database_url: str, kube: ControlPlane) -> None:
        self._headers = {"Authorization": f"Bearer {token}", "Idempotency-Key": key}
        self._database_url, self._kube = database_url, kube
        self._pool = ThreadPoolExecutor(1)

    def call(self, api: ApiProcess) -> httpx.Response:
        return httpx.post(f"{api.url}{PATH}", json=ORDER, headers=self._headers, timeout=30)

    def insist(self, api: ApiProcess) -> httpx.Response:
        """Repeat as long as the API says that it is of use, and as late as it says."""
        while True:
            answer = self.call(api)
            if "retry-after" not in answer.headers:
                return answer
            time.sleep(int(answer.headers["retry-after"]))

    @contextmanager
    def held(self, api: ApiProcess, proxy: CutProxy) -> Iterator["Future[httpx.Response]"]:
        """Call; within, the order is announced, and its create waits in the proxy."""
        with psycopg.connect(self._database_url) as connection:
            connection.execute("lock table audit_event in share row exclusive mode")
            answer = self._pool.submit(self.call, api)
            with psycopg.connect(self._database_url, autocommit=True) as looking:
                self._until(
                    looking, "select 1 from pg_locks where not granted and locktype = 'relation'"
                )
                proxy.hold()
                connection.rollback()
                self._until(
                    looking,
                    "select 1 from audit_event where stage = 'RequestReceived' "
                    "and namespace = 'repeats' "
                    "and not exists (select from audit_event done where done.request_id = "
                    "audit_event.request_id and done.stage = 'ResponseComplete')",
                )
        assert proxy.held.wait(10)
        yield answer

    @staticmethod
    def _until(looking: psycopg.Connection, question: str) -> None:
        deadline = time.monotonic() + 20
        while not looking.execute(question.encode()).fetchone():
            assert time.monotonic() < deadline, question
            time.sleep(0.01)


@pytest.fixture
def caller(
    token: str, api_database_url: str, kube: ControlPlane, request: pytest.FixtureRequest
) -> Caller:
    return Caller(token, request.node.name[:100], api_database_url, kube)


def creates(kube: ControlPlane, name: str) -> int:
    """Return how often the API server made a Dispatch of a name."""
    return sum(
        each["verb"] == "create"
        and each["objectRef"]["name"] == name  # type: ignore[index]
        and each["responseStatus"]["code"] == 201  # type: ignore[index]
        for each in kube.audit_events()
    )


def dispatches(kube: ControlPlane) -> dict[str, Any]:
    listed = json.loads(kube.kubectl("get", "dispatches", "-n", "repeats", "-o", "json"))
    return {each["metadata"]["name"]: each for each in listed["items"]}


def restart(api: ApiProcess) -> None:
    api.process.start()
    api.process.wait_until(http_ok(f"http://127.0.0.1:{api.ops_port}/readyz"))


def test_killed_between_announcement_and_create(
    kube: ControlPlane, caller: Caller, cut_api: ApiProcess, proxy: CutProxy
) -> None:
    before = dispatches(kube)
    with caller.held(cut_api, proxy) as lost:
        cut_api.process.kill()
        proxy.cut()
    proxy.pass_on()
    assert isinstance(lost.exception(), httpx.TransportError)
    restart(cut_api)

    soon = caller.call(cut_api)
    problem(soon, 409, "conflict")
    assert dispatches(kube).keys() == before.keys()
    made = caller.insist(cut_api)

    assert made.status_code == 201, made.text
    again = caller.call(cut_api)
    assert (again.status_code, again.json()["uid"]) == (200, made.json()["uid"])
    assert creates(kube, made.json()["name"]) == 1


def test_killed_between_create_and_answer(
    kube: ControlPlane, caller: Caller, cut_api: ApiProcess, proxy: CutProxy, start_api: StartApi
) -> None:
    other = start_api(replica="api-1")
    with caller.held(cut_api, proxy) as lost:
        before = dispatches(kube)
        proxy.pass_to_server()
        while not (made := dispatches(kube).keys() - before.keys()):
            time.sleep(0.05)
        cut_api.process.kill()
        proxy.cut()
    proxy.pass_on()
    assert isinstance(lost.exception(), httpx.TransportError)
    (name,) = made

    answer = caller.call(other)

    assert answer.status_code == 200, answer.text
    assert answer.headers["idempotency-replayed"] == "true"
    assert answer.json()["name"] == name
    assert creates(kube, name) == 1


def test_killed_between_create_and_answer_and_deleted_by_hand(
    kube: ControlPlane, caller: Caller, cut_api: ApiProcess, proxy: CutProxy
) -> None:
    with caller.held(cut_api, proxy):
        before = dispatches(kube)
        proxy.pass_to_server()
        while not (made := dispatches(kube).keys() - before.keys()):
            time.sleep(0.05)
        cut_api.process.kill()
        proxy.cut()
    proxy.pass_on()
    (name,) = made
    kube.kubectl("delete", "dispatch", name, "-n", "repeats")
    restart(cut_api)

    answer = caller.insist(cut_api)

    problem(answer, 409, "idempotency-key-expired")
    assert creates(kube, name) == 1
    assert name not in dispatches(kube)


def test_cut_off_before_kubernetes_heard_of_it(
    kube: ControlPlane, caller: Caller, cut_api: ApiProcess, proxy: CutProxy
) -> None:
    with caller.held(cut_api, proxy) as answer:
        proxy.cut()
    proxy.pass_on()
    body = problem(answer.result(), 503, "kubernetes-unavailable")
    assert "same Idempotency-Key" in body["detail"]
    assert answer.result().headers["retry-after"]

    made = caller.insist(cut_api)

    assert made.status_code == 201, made.text
    assert creates(kube, made.json()["name"]) == 1


def test_two_replicas_at_once(
    kube: ControlPlane, token: str, start_api: StartApi, caller: Caller
) -> None:
    replicas = [start_api(replica="api-0"), start_api(replica="api-1")]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: caller.insist(replicas[number % 2]), range(50)))

    assert {each.status_code for each in answers} <= {200, 201}
    assert len({each.json()["uid"] for each in answers}) == 1
    assert creates(kube, answers[0].json()["name"]) == 1
