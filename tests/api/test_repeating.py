"""A client that repeats its call at each failure: real processes, killed and cut off in between.

No writer runs here: what a key was used for is known without it.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.cutting import CutProxy
from tests.api.fixtures import StartApi
from tests.api.repeating import Caller, restart
from tests.api.rig import ApiProcess, Tenant, make_tenant, problem
from tests.crds.manifests import BATTERY, merged
from tests.stack.controlplane import ControlPlane
from tests.waiting import eventually

ORDER: dict[str, Any] = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}
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


@pytest.fixture
def caller(
    token: str, api_database_url: str, kube: ControlPlane, request: pytest.FixtureRequest
) -> Iterator[Caller]:
    key = request.node.name[:100]
    made = Caller(token, "repeats", ORDER, key, database_url=api_database_url, kube=kube)
    yield made
    made.close()


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
    again = caller.call(cut_api.url)
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

    answer = caller.call(other.url)

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
