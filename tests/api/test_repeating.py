"""A client that repeats its call at each failure: real processes, killed and cut off in between.

No writer runs here: what a key was used for is known without it.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import kubernetes
import psycopg
import pytest
from tests.api.cutting import CutProxy
from tests.api.fixtures import StartApi
from tests.api.rig import ApiProcess, Tenant, make_tenant, problem
from tests.crds.manifests import BATTERY, merged
from tests.stack.controlplane import ControlPlane
from tests.stack.processes import http_ok

from derops_headend.api.caller import Caller as CallerFact
from derops_headend.api.caller import CallerKind
from derops_headend.api.orders import name_of

ORDER: dict[str, Any] = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}
PATH = "/v1/namespaces/repeats/dispatches"
GROUP = ("derops.io", "v1alpha1")
pytestmark = pytest.mark.timeout(600)


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
        account = CallerFact(
            kind=CallerKind.KUBERNETES, name="system:serviceaccount:repeats:dispatcher"
        )
        self.name = name_of(account, "repeats", key)
        """Of what the order becomes."""
        client = kubernetes.config.new_client_from_config(kube.kubeconfig)
        self._objects = kubernetes.client.CustomObjectsApi(client)

    @property
    def exists(self) -> bool:
        """Whether the Dispatch of the order is there; asked at the API server itself."""
        found = self._objects.list_namespaced_custom_object(
            *GROUP, "repeats", "dispatches", field_selector=f"metadata.name={self.name}"
        )
        return bool(found["items"])

    @property
    def creates(self) -> int:
        """How often the API server made it, by its own audit."""
        return sum(
            each["verb"] == "create"
            and each["objectRef"].get("name") == self.name  # type: ignore[attr-defined]
            and each["responseStatus"]["code"] == 201  # type: ignore[index]
            for each in self._kube.audit_events()
        )

    def delete(self) -> None:
        """Delete it, as by hand."""
        self._objects.delete_namespaced_custom_object(*GROUP, "repeats", "dispatches", self.name)

    def close(self) -> None:
        self._pool.shutdown()
        self._objects.api_client.close()

    def call(self, api: ApiProcess) -> httpx.Response:
        return httpx.post(f"{api.url}{PATH}", json=ORDER, headers=self._headers, timeout=30)

    def _look(self, api: ApiProcess) -> None:
        """Have the API connect to Kubernetes: no handshake gets through what holds its answers."""
        httpx.get(f"{api.url}{PATH}/{self.name}", headers=self._headers, timeout=30)

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
        self._look(api)
        with psycopg.connect(self._database_url) as connection:
            connection.execute("lock table audit_event in share row exclusive mode")
            answer = self._pool.submit(self.call, api)
            with psycopg.connect(self._database_url, autocommit=True) as looking:
                _until(
                    looking, "select 1 from pg_locks where not granted and locktype = 'relation'"
                )
                proxy.hold()
                connection.rollback()
                _until(
                    looking,
                    "select 1 from audit_event where stage = 'RequestReceived' "
                    f"and name = '{self.name}'",
                )
        assert proxy.held.wait(10)
        yield answer


@pytest.fixture
def caller(
    token: str, api_database_url: str, kube: ControlPlane, request: pytest.FixtureRequest
) -> Iterator[Caller]:
    made = Caller(token, request.node.name[:100], api_database_url, kube)
    yield made
    made.close()


def restart(api: ApiProcess) -> None:
    api.process.start()
    api.process.wait_until(http_ok(f"http://127.0.0.1:{api.ops_port}/readyz"))


def test_killed_between_announcement_and_create(
    caller: Caller, cut_api: ApiProcess, proxy: CutProxy
) -> None:
    with caller.held(cut_api, proxy) as lost:
        cut_api.process.kill()
        proxy.cut()
    proxy.pass_on()
    assert isinstance(lost.exception(), httpx.TransportError)
    restart(cut_api)

    assert not caller.exists
    made = caller.insist(cut_api)

    assert made.status_code == 201, made.text
    again = caller.call(cut_api)
    assert (again.status_code, again.json()["uid"]) == (200, made.json()["uid"])
    assert caller.creates == 1


def test_killed_between_create_and_answer(
    caller: Caller, cut_api: ApiProcess, proxy: CutProxy, start_api: StartApi
) -> None:
    other = start_api(replica="api-1")
    with caller.held(cut_api, proxy) as lost:
        proxy.pass_to_server()
        eventually(lambda: caller.exists)
        cut_api.process.kill()
        proxy.cut()
    proxy.pass_on()
    assert isinstance(lost.exception(), httpx.TransportError)

    answer = caller.call(other)

    assert answer.status_code == 200, answer.text
    assert answer.headers["idempotency-replayed"] == "true"
    assert caller.creates == 1


def test_killed_between_create_and_answer_and_deleted_by_hand(
    caller: Caller, cut_api: ApiProcess, proxy: CutProxy
) -> None:
    with caller.held(cut_api, proxy):
        proxy.pass_to_server()
        eventually(lambda: caller.exists)
        cut_api.process.kill()
        proxy.cut()
    proxy.pass_on()
    caller.delete()
    restart(cut_api)

    answer = caller.insist(cut_api)

    problem(answer, 409, "idempotency-key-expired")
    assert caller.creates == 1
    assert not caller.exists


def test_cut_off_before_kubernetes_heard_of_it(
    caller: Caller, cut_api: ApiProcess, proxy: CutProxy
) -> None:
    with caller.held(cut_api, proxy) as answer:
        proxy.cut()
    proxy.pass_on()
    body = problem(answer.result(), 503, "kubernetes-unavailable")
    assert "same Idempotency-Key" in body["detail"]
    assert answer.result().headers["retry-after"]

    made = caller.insist(cut_api)

    assert made.status_code == 201, made.text
    assert caller.creates == 1


def test_two_replicas_at_once(start_api: StartApi, caller: Caller) -> None:
    replicas = [start_api(replica="api-0"), start_api(replica="api-1")]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda number: caller.insist(replicas[number % 2]), range(50)))

    assert {each.status_code for each in answers} <= {200, 201}
    assert len({each.json()["uid"] for each in answers}) == 1
    assert caller.creates == 1


def _until(looking: psycopg.Connection, question: str) -> None:
    eventually(lambda: looking.execute(question.encode()).fetchone())


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
