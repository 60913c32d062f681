"""Dispatches by REST, on a real API server, database and audit."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import psycopg
import pytest
from tests.api.rig import ApiProcess, Tenant, make_tenant, problem
from tests.crds.manifests import BATTERY, merged
from tests.stack.controlplane import ControlPlane
from tests.waiting import until

_keys = itertools.count(1)
ORDER: dict[str, Any] = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}
PATH = "/v1/namespaces/orders/dispatches"


def new_key() -> dict[str, str]:
    return {"Idempotency-Key": f"key-{next(_keys)}"}


@pytest.fixture(scope="module")
def orders(kube: ControlPlane) -> Tenant:
    tenant = make_tenant(kube, "orders")
    kube.apply(merged(BATTERY, {"metadata": {"namespace": "orders"}}))
    return tenant


@pytest.fixture(scope="module")
def client(api: ApiProcess, orders: Tenant) -> Iterator[httpx.Client]:
    with api.client(orders.token("dispatcher")) as opened:
        yield opened


@pytest.fixture
def make(client: httpx.Client) -> Callable[..., httpx.Response]:
    def call(order: dict[str, Any] | None = None, **options: Any) -> httpx.Response:
        options.setdefault("headers", new_key())
        return client.post(PATH, json=merged(ORDER, order or {}), **options)

    return call


Make = Callable[..., httpx.Response]


def kubectl_get(kube: ControlPlane, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        kube.kubectl("get", "dispatch", name, "-n", "orders", "-o", "json")
    )
    return found


def test_an_order_becomes_a_dispatch(kube: ControlPlane, make: Make) -> None:
    answer = make()

    assert answer.status_code == 201, answer.text
    body = answer.json()
    assert answer.headers["location"] == f"{PATH}/{body['name']}"
    assert body["name"].startswith("api-")
    stored = kubectl_get(kube, body["name"])
    assert stored["metadata"]["uid"] == body["uid"]
    annotations = stored["metadata"]["annotations"]
    assert annotations["derops.io/created-by"] == "system:serviceaccount:orders:dispatcher"
    assert annotations["derops.io/request-id"] == answer.headers["x-request-id"]
    assert body["createdBy"] == annotations["derops.io/created-by"]
    assert stored["spec"]["startTime"].endswith("Z")
    assert stored["spec"]["primacy"] == 100
    assert stored["spec"]["desiredState"] == "Active"


def test_what_is_read_is_what_was_made(client: httpx.Client, make: Make) -> None:
    made = make({"startTime": "2030-12-01T18:00:00+01:00", "name": "read-me", "primacy": 7}).json()

    read = client.get(f"{PATH}/read-me")

    assert read.status_code == 200, read.text
    assert read.json()["uid"] == made["uid"]
    assert read.json()["startTime"] == "2030-12-01T18:00:00+01:00"
    assert read.json()["primacy"] == 7
    assert read.json()["setpoint"]["activePowerWatts"] == 5000


def test_a_repeated_call_finds_what_the_first_one_made(make: Make) -> None:
    key = new_key()
    first, second = make(headers=key), make(headers=key)

    assert (first.status_code, second.status_code) == (201, 200)
    assert second.headers["idempotency-replayed"] == "true"
    for each in ("uid", "startTime", "name"):
        assert first.json()[each] == second.json()[each]


def test_the_same_in_other_words_is_the_same(client: httpx.Client, make: Make) -> None:
    key = new_key()
    first = make(headers=key)
    again = client.post(PATH, headers=key, json={"primacy": 100, "verify": "Report", **ORDER})

    assert again.status_code == 200
    assert again.json()["uid"] == first.json()["uid"]


def test_a_key_is_for_one_order(make: Make) -> None:
    key = new_key()
    make(headers=key)

    problem(make({"durationSeconds": 1801}, headers=key), 409, "idempotency-key-reused")


def test_a_key_is_its_callers_own(api: ApiProcess, kube: ControlPlane, make: Make) -> None:
    other = make_tenant(kube, "orders-2")
    kube.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "guest", "namespace": "orders"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "test-dispatcher",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "dispatcher", "namespace": "orders-2"}],
        }
    )
    key = new_key()
    first = make(headers=key)
    with api.client(other.token("dispatcher")) as guest:
        second = guest.post(PATH, headers=key, json=ORDER)

    assert second.status_code == 201
    assert second.json()["uid"] != first.json()["uid"]


def test_fifty_at_once_are_one(client: httpx.Client) -> None:
    key = new_key()
    with ThreadPoolExecutor(25) as pool:
        answers = list(pool.map(lambda _: client.post(PATH, headers=key, json=ORDER), range(50)))

    assert sorted(each.status_code for each in answers) == [200] * 49 + [201]
    assert len({each.json()["uid"] for each in answers}) == 1


def test_a_key_whose_dispatch_was_deleted_makes_no_other(kube: ControlPlane, make: Make) -> None:
    key = new_key()
    name = make(headers=key).json()["name"]
    kube.kubectl("delete", "dispatch", name, "-n", "orders")

    problem(make(headers=key), 409, "idempotency-key-expired")
    assert name not in kube.kubectl("get", "dispatches", "-n", "orders")


def test_a_key_whose_dispatch_was_made_anew_by_another_finds_none(
    kube: ControlPlane, make: Make
) -> None:
    key = new_key()
    name = make(headers=key).json()["name"]
    stored = kubectl_get(kube, name)
    kube.kubectl("delete", "dispatch", name, "-n", "orders")
    kept = {each: stored["metadata"][each] for each in ("name", "namespace", "annotations")}
    kube.apply({**stored, "metadata": kept})

    problem(make(headers=key), 409, "idempotency-key-expired")


def test_a_name_that_another_call_took_is_a_conflict(make: Make) -> None:
    make({"name": "taken"})

    body = problem(make({"name": "taken"}), 409, "conflict")
    assert body["errors"][0]["pointer"] == "/name"


def test_what_kubernetes_refused_leaves_its_key_unused(make: Make) -> None:
    key = new_key()
    wrong = make({"setpoint": {"mode": "LoadLimit"}}, headers=key)
    body = problem(wrong, 422, "invalid")
    assert {each["pointer"] for each in body["errors"]} == {
        "/setpoint/maxLoadWatts",
        "/setpoint/activePowerWatts",
    }

    assert make(headers=key).status_code == 201


def test_an_order_needs_a_key(client: httpx.Client) -> None:
    body = problem(client.post(PATH, json=ORDER), 422, "invalid")
    assert body["errors"][0]["parameter"] == "Idempotency-Key"


def test_a_dry_run_makes_nothing(client: httpx.Client, kube: ControlPlane, make: Make) -> None:
    before = kube.kubectl("get", "dispatches", "-n", "orders", "-o", "name")
    answer = make(params={"dryRun": "true"}, headers={})

    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["result"] == "unknown"
    assert body["reason"] == "AgentOffline"
    assert body["dispatch"]["uid"] == ""
    facts = {each["name"]: each for each in body["facts"]}
    assert facts["asset.generation"]["value"] == "1"
    assert 0 <= facts["asset.generation"]["ageSeconds"] < 90
    assert kube.kubectl("get", "dispatches", "-n", "orders", "-o", "name") == before


@pytest.mark.parametrize(
    ("order", "phase", "reason"),
    [
        ({"setpoint": {"activePowerWatts": 10001}}, "Rejected", "LimitExceeded"),
        ({"durationSeconds": 86401}, "Rejected", "InvalidSchedule"),
        ({"startTime": "2026-01-01T00:00:00Z"}, "Expired", "StartDeadlineExceeded"),
    ],
)
def test_a_dry_run_says_what_would_be_refused(
    make: Make, order: dict[str, Any], phase: str, reason: str
) -> None:
    body = make(order, params={"dryRun": "true"}, headers={}).json()

    assert (body["result"], body["phase"], body["reason"]) == ("refused", phase, reason)


def test_a_dry_run_for_no_asset_knows_nothing(make: Make) -> None:
    body = make({"asset": "nobody"}, params={"dryRun": "true"}, headers={}).json()

    assert (body["result"], body["reason"]) == ("unknown", "AssetNotFound")


def test_a_cancelled_order_stays_cancelled(client: httpx.Client, make: Make) -> None:
    made = make().json()
    path = f"{PATH}/{made['name']}/cancel"
    first, second = client.post(path), client.post(path)

    assert (first.status_code, second.status_code) == (200, 200), first.text
    assert first.json()["desiredState"] == second.json()["desiredState"] == "Cancelled"
    assert first.json()["resourceVersion"] == second.json()["resourceVersion"]


def test_another_object_is_not_cancelled(client: httpx.Client, make: Make) -> None:
    made = make().json()
    path = f"{PATH}/{made['name']}/cancel"

    problem(client.post(path, params={"uid": "another"}), 409, "conflict")
    assert client.get(f"{PATH}/{made['name']}").json()["desiredState"] == "Active"
    assert client.post(path, params={"uid": made["uid"]}).status_code == 200


def test_what_has_ended_cannot_be_cancelled(
    client: httpx.Client, kube: ControlPlane, make: Make
) -> None:
    name = make().json()["name"]
    ended = {
        "status": {
            "phase": "Complete",
            "completionTime": "2030-12-01T18:30:00Z",
            "observedGeneration": 1,
        }
    }
    kube.kubectl(
        "patch", "dispatch", name, "-n", "orders", "--subresource=status", "--type=merge",
        "-p", json.dumps(ended),
    )  # fmt: skip

    problem(client.post(f"{PATH}/{name}/cancel"), 409, "conflict")


def test_a_cancel_while_the_status_changes_all_the_time_succeeds(
    client: httpx.Client, kube: ControlPlane, make: Make
) -> None:
    name = make().json()["name"]
    stop = threading.Event()

    def disturb() -> None:
        for number in itertools.count():
            if stop.is_set():
                return
            status = json.dumps({"status": {"message": str(number), "observedGeneration": 1}})
            kube.kubectl(
                "patch", "dispatch", name, "-n", "orders", "--subresource=status",
                "--type=merge", "-p", status,
            )  # fmt: skip

    disturbing = threading.Thread(target=disturb)
    disturbing.start()
    try:
        assert client.post(f"{PATH}/{name}/cancel").status_code == 200
    finally:
        stop.set()
        disturbing.join()


def test_a_list_comes_in_pages_and_by_phase_and_asset(client: httpx.Client, make: Make) -> None:
    for number in range(5):
        make({"asset": "listed", "name": f"listed-{number}"})
    names, after = [], None
    while True:
        params: dict[str, Any] = {"asset": "listed", "limit": 2}
        if after is not None:
            params["after"] = after
        page = client.get(PATH, params=params).json()
        names += [each["name"] for each in page["items"]]
        after = page.get("next")
        if after is None:
            break
    assert names == [f"listed-{number}" for number in range(5)]
    assert client.get(PATH, params={"asset": "listed", "phase": "Complete"}).json()["items"] == []
    body = problem(client.get(PATH, params={"after": "junk"}), 422, "invalid")
    assert body["errors"][0]["parameter"] == "after"


def test_who_may_only_look_may_not_order(api: ApiProcess, orders: Tenant, make: Make) -> None:
    name = make().json()["name"]
    with api.client(orders.token("viewer")) as viewer:
        assert viewer.get(f"{PATH}/{name}").status_code == 200
        problem(viewer.post(PATH, json=ORDER, headers=new_key()), 403, "forbidden")
        problem(viewer.post(f"{PATH}/{name}/cancel"), 403, "forbidden")
    with api.client(orders.token("nobody")) as nobody:
        problem(nobody.get(f"{PATH}/{name}"), 404, "not-found")
        problem(nobody.get(f"{PATH}/no-such"), 404, "not-found")
        problem(nobody.post(PATH, json=ORDER, headers=new_key()), 404, "not-found")


def test_what_was_ordered_is_in_the_audit(api_database_url: str, make: Make) -> None:
    made = make({"startTime": "2030-12-01T18:00:00Z"})
    with psycopg.connect(api_database_url) as connection:
        rows = connection.execute(
            "select stage, body from audit_event where request_id = %s order by seq",
            (made.headers["x-request-id"],),
        ).fetchall()
    announced = json.loads(rows[0][1])
    assert rows[0][0] == "RequestReceived"
    assert announced["name"] == made.json()["name"]
    assert announced["verb"] == "create"
    assert announced["change"]["startTime"] == "2030-12-01T18:00:00Z"
    assert announced["change"]["setpoint"] == ORDER["setpoint"]


@pytest.mark.parametrize("sent", [{"json": ORDER}, {"content": b"{"}, {"json": {"asset": 7}}])
async def test_what_is_refused_is_in_its_tenants_audit(
    client: httpx.Client, api_database_url: str, sent: dict[str, Any]
) -> None:
    answer = client.post(PATH, **sent, headers={"Content-Type": "application/json"})
    problem(answer, 422, "invalid")

    with psycopg.connect(api_database_url, autocommit=True) as connection:

        def told() -> list[tuple[object, ...]]:
            return connection.execute(
                "select namespace, status from audit_event where request_id = %s",
                (answer.headers["x-request-id"],),
            ).fetchall()

        await until(told)
        assert told() == [("orders", 422)]
