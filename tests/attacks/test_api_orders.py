"""Attacks on the REST API's assets and dispatches, by a tenant with a valid token."""

import base64
import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import kubernetes
import psycopg
import pytest
from tests.api.fixtures import StartApi
from tests.api.rig import ApiProcess, Tenant, make_tenant, make_token, problem
from tests.crds.manifests import BATTERY, DISPATCH, merged
from tests.stack.controlplane import ControlPlane

from derops_headend.api.caller import Caller, CallerKind
from derops_headend.api.orders import NewDispatch, canonical, name_of, sha256_of
from derops_headend.storage.engines import days_ahead, detect

OWN, FOREIGN = "attacker", "victim"
ORDER: dict[str, Any] = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}
GROUP = ("derops.io", "v1alpha1")
BALLAST = 150
"""Dispatches of 256 KiB each."""

DISPATCHES = f"/v1/namespaces/{OWN}/dispatches"


@pytest.fixture(scope="module")
def attacker(kube: ControlPlane) -> Tenant:
    made = make_tenant(kube, OWN)
    kube.apply(merged(BATTERY, {"metadata": {"namespace": OWN}}))
    return made


@pytest.fixture(scope="module")
def victim(kube: ControlPlane) -> Tenant:
    made = make_tenant(kube, FOREIGN)
    kube.apply(
        merged(BATTERY, {"metadata": {"namespace": FOREIGN}}),
        merged(DISPATCH, {"metadata": {"namespace": FOREIGN}}),
    )
    return made


@pytest.fixture(scope="module")
def client(api: ApiProcess, attacker: Tenant, victim: Tenant) -> Iterator[httpx.Client]:
    with api.client(attacker.token("dispatcher")) as opened:
        yield opened


def names(kube: ControlPlane, namespace: str) -> str:
    return kube.kubectl("get", "dispatches", "-n", namespace, "-o", "name")


def post(client: httpx.Client, order: Any, key: str, path: str = DISPATCHES) -> httpx.Response:
    return client.post(path, json=order, headers={"Idempotency-Key": key})


def test_what_is_anothers_is_as_if_it_were_not_there(
    client: httpx.Client, kube: ControlPlane, victim: Tenant
) -> None:
    """R90: each operation in another tenant's namespace, on what is there and what is not."""
    before = kube.kubectl("get", "derassets,dispatches", "-n", FOREIGN, "-o", "yaml")
    for namespace in (FOREIGN, "no-such-namespace"):
        for there, absent in (
            (f"assets/{BATTERY['metadata']['name']}", "assets/nothing"),
            (f"dispatches/{DISPATCH['metadata']['name']}", "dispatches/nothing"),
        ):
            answers = [client.get(f"/v1/namespaces/{namespace}/{each}") for each in (there, absent)]
            bodies = [problem(each, 404, "not-found") for each in answers]
            assert bodies[0]["detail"] == bodies[1]["detail"]
        for kind in ("assets", "dispatches"):
            problem(client.get(f"/v1/namespaces/{namespace}/{kind}"), 404, "not-found")
        path = f"/v1/namespaces/{namespace}/dispatches"
        problem(post(client, ORDER, "foreign", path), 404, "not-found")
        for name in (DISPATCH["metadata"]["name"], "nothing"):
            problem(client.post(f"{path}/{name}/cancel"), 404, "not-found")
        answer = client.post(path, json=ORDER, params={"dryRun": "true"})
        problem(answer, 404, "not-found")
    assert kube.kubectl("get", "derassets,dispatches", "-n", FOREIGN, "-o", "yaml") == before


@pytest.mark.parametrize(
    "namespace",
    ["..", "%2e%2e", "a%2Fb", "a%00", "UPPER", "a" * 64, "-", "a_b", "%252e", "a b", "kube-system"],
)
def test_a_namespace_that_is_none(client: httpx.Client, namespace: str) -> None:
    """R91: a path that leads out of the namespaces, or to one of the cluster's own."""
    for kind in ("assets", "dispatches"):
        answer = client.get(f"/v1/namespaces/{namespace}/{kind}/battery-7")
        assert answer.status_code in (404, 422), answer.text
    answer = post(client, ORDER, "odd", f"/v1/namespaces/{namespace}/dispatches")
    assert answer.status_code in (404, 405, 422), answer.text


def test_a_foreign_namespace_among_ones_own(client: httpx.Client) -> None:
    """R92: a list of several namespaces, one of them another's."""
    answer = client.get("/v1/assets", params={"namespace": [FOREIGN, OWN, FOREIGN, "none"]})
    assert answer.json()["namespaces"] == [OWN]
    assert {each["namespace"] for each in answer.json()["items"]} <= {OWN}


def test_a_right_that_is_taken_away_between_pages(
    api: ApiProcess, kube: ControlPlane, victim: Tenant
) -> None:
    """R93: a caller goes on with the pages of a list that it may not see any more."""
    tenant = make_tenant(kube, "leaver")
    identity = {"namespace": "leaver"}
    kube.apply(
        *(merged(DISPATCH, {"metadata": {**identity, "name": f"d-{each}"}}) for each in range(3))
    )
    path = "/v1/namespaces/leaver/dispatches"
    with api.client(tenant.token("viewer")) as viewer:
        page = viewer.get(path, params={"limit": 1}).json()
        kube.kubectl("delete", "rolebinding", "viewer", "-n", "leaver")
        deadline = time.monotonic() + 60
        while viewer.get(path, params={"limit": 1, "after": page["next"]}).status_code != 404:
            assert time.monotonic() < deadline
            time.sleep(0.2)


FORBIDDEN_FIELDS = [
    {"status": {"phase": "Complete"}},
    {"metadata": {"annotations": {"derops.io/created-by": "admin"}}},
    {"namespace": FOREIGN},
    {"annotations": {"derops.io/created-by": "admin"}},
    {"createdBy": "admin"},
    {"derops.io/created-by": "admin"},
    {"desiredState": "Cancelled"},
    {"spec": {}},
    {"assetRef": {"name": "battery-7"}},
    {"setpoint": {**ORDER["setpoint"], "duration_seconds": 5}},
    {"duration_seconds_": 5},
    {"uid": "x"},
    {"finalizers": ["derops.io/in-flight"]},
]


@pytest.mark.parametrize("field", FORBIDDEN_FIELDS, ids=str)
def test_a_body_with_more_than_an_order(
    client: httpx.Client, kube: ControlPlane, field: dict[str, Any]
) -> None:
    """R94: an order that also says who ordered it, where, or what became of it."""
    before = names(kube, OWN)
    body = problem(post(client, {**ORDER, **field}, "more"), 422, "invalid")
    assert body["errors"]
    assert names(kube, OWN) == before


NUMBERS = [
    "true", '"5"', "5.5", "5.0", "1e3", "1e309", "NaN", "Infinity", "9223372036854775808",
    "10000000000000000000", "-1000000000001", "null", "[]", "{}", '"\\ud800"', "1" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS, ids=lambda each: each[:20])
def test_a_number_that_is_none(client: httpx.Client, number: str) -> None:
    """R95: numbers that parsers read in different ways."""
    text = json.dumps({**ORDER, "setpoint": {**ORDER["setpoint"], "activePowerWatts": "HERE"}})
    sent = text.replace('"HERE"', number)
    answer = client.post(
        DISPATCHES,
        content=sent,
        headers={"Content-Type": "application/json", "Idempotency-Key": f"number-{number[:20]}"},
    )
    assert answer.status_code in (400, 422), answer.text
    assert len(answer.text) < 2000


@pytest.mark.parametrize(
    "body",
    [
        "[" * 30000,
        '{"a":' * 10000 + "1" + "}" * 10000,
        '{"asset":' + "[" * 20000 + "]" * 20000 + "}",
        "{" + ",".join(f'"k{each}":1' for each in range(5000)) + "}",
        '{"asset":"\\ud800"}',
        '{"asset":"a","asset":"b"}',
        "",
        "null",
        '"text"',
    ],
    ids=["open", "deep", "deep value", "wide", "surrogate", "twice", "empty", "null", "text"],
)
def test_a_body_that_is_no_order(client: httpx.Client, body: str) -> None:
    """R96: bodies that cost a parser much, or end it."""
    headers = {"Content-Type": "application/json", "Idempotency-Key": "body"}
    answer = client.post(DISPATCHES, content=body, headers=headers)
    assert answer.status_code in (400, 413, 422), answer.text
    assert len(answer.text) < 5000
    assert client.get("/v1/me").status_code == 200


def test_a_name_that_was_foreseen(
    api: ApiProcess, kube: ControlPlane, attacker: Tenant, client: httpx.Client
) -> None:
    """R97: somebody makes what a caller's key will name, with another order and its marks."""
    account = f"system:serviceaccount:{OWN}:dispatcher"
    caller = Caller(kind=CallerKind.KUBERNETES, name=account)
    name = name_of(caller, OWN, "guessed")
    body = sha256_of(canonical(NewDispatch.model_validate(ORDER)))
    marks = {
        "derops.io/created-by": account,
        "derops.io/request-sha256": sha256_of([account, OWN, "guessed", body]),
    }
    forged = merged(DISPATCH, {"metadata": {"name": name, "namespace": OWN, "annotations": marks}})
    kube.apply(merged(forged, {"spec": {"setpoint": {"activePowerWatts": -8000}}}))

    problem(post(client, ORDER, "guessed"), 409, "conflict")


def test_a_dry_run_leaves_nothing(
    client: httpx.Client, kube: ControlPlane, api_database_url: str
) -> None:
    """R98: a dry run is to move something, or to be taken for an order."""
    before = names(kube, OWN)
    answer = client.post(
        DISPATCHES, json=ORDER, params={"dryRun": "true"}, headers={"Idempotency-Key": "dry"}
    )
    assert answer.status_code == 200, answer.text
    assert names(kube, OWN) == before
    name = answer.json()["dispatch"]["name"]
    with psycopg.connect(api_database_url) as connection:
        assert not connection.execute(
            "select from dispatch_event where dispatch_name = %s", (name,)
        ).fetchall()
    assert post(client, ORDER, "dry").status_code == 201


@pytest.mark.parametrize(
    "query", ["dryrun=true", "dry_run=true", "dryRun=true&dryRun=false", "dryRun=true&name=x"]
)
def test_a_dry_run_in_other_words_orders_nothing(client: httpx.Client, query: str) -> None:
    """R126: a parameter that is misspelt, or given twice by somebody on the way."""
    name = f"dry-{sha256_of(query)[:8]}"
    answer = post(client, {**ORDER, "name": name}, query, f"{DISPATCHES}?{query}")

    problem(answer, 422, "invalid")
    assert client.get(f"{DISPATCHES}/{name}").status_code == 404
    problem(client.post(f"{DISPATCHES}/{name}/cancel?UID=7"), 422, "invalid")


def test_a_dry_run_tells_no_telemetry(
    api: ApiProcess,
    client: httpx.Client,
    attacker: Tenant,
    kube: ControlPlane,
    api_database_url: str,
) -> None:
    """R127: who may order, and not see what is measured, tries orders to learn how full it is."""
    uid = client.get(f"/v1/namespaces/{OWN}/assets/battery-7").json()["uid"]
    with psycopg.connect(api_database_url, autocommit=True) as connection:
        detect(connection).prepare(connection, days_ahead(datetime.now(UTC)))
        connection.execute(
            "with made as (insert into asset (namespace, name, uid) values (%s, %s, %s) "
            "returning asset_id) insert into telemetry (asset_id, ts, received_at, "
            "state_of_charge_percent) select asset_id, now(), now(), 42 from made",
            (OWN, "battery-7", uid),
        )
    kube.kubectl("create", "serviceaccount", "blind", "-n", OWN)
    rules = ["--verb=get,create", "--resource=dispatches.derops.io,derassets.derops.io"]
    kube.kubectl("create", "role", "blind", "-n", OWN, *rules)
    kube.kubectl(
        "create", "rolebinding", "blind", "-n", OWN, "--role=blind", f"--serviceaccount={OWN}:blind"
    )

    def facts(asking: httpx.Client) -> list[str]:
        answer = asking.post(DISPATCHES, json=ORDER, params={"dryRun": "true"})
        assert answer.status_code == 200, answer.text
        return [each["name"] for each in answer.json()["facts"]]

    assert "stateOfChargePercent" in facts(client)
    with api.client(make_token(kube, OWN, "blind")) as blind:
        assert "stateOfChargePercent" not in facts(blind)


def test_dispatches_that_are_as_large_as_they_may_be(
    start_api: StartApi, attacker: Tenant, kube: ControlPlane
) -> None:
    """R130: a page of them is to take the memory of the API, and so its answers to all others."""
    api = start_api()
    kube.kubectl("create", "namespace", "ballast")
    client = kubernetes.config.new_client_from_config(kube.kubeconfig)
    objects = kubernetes.client.CustomObjectsApi(client)
    ballast = {"example.com/ballast": "\u00e9" * 130_000}
    for number in range(BALLAST):
        metadata = {"namespace": "ballast", "name": f"d-{number}", "annotations": ballast}
        objects.create_namespaced_custom_object(
            "derops.io",
            "v1alpha1",
            "ballast",
            "dispatches",
            merged(DISPATCH, {"metadata": metadata}),
        )
    client.close()
    kube.kubectl(
        "create", "rolebinding", "ballast", "-n", "ballast", "--clusterrole=test-viewer",
        f"--serviceaccount={OWN}:viewer",
    )  # fmt: skip
    found: list[str] = []
    with api.client(attacker.token("viewer")) as viewer:
        viewer.get(DISPATCHES)
        before = peak_mebibytes(api)
        query: dict[str, str] = {"limit": "500"}
        while True:
            answer = viewer.get("/v1/namespaces/ballast/dispatches", params=query)
            assert answer.status_code == 200, answer.text
            found += [each["name"] for each in answer.json()["items"]]
            if "next" not in answer.json():
                break
            query["after"] = answer.json()["next"]
    assert sorted(found) == sorted(f"d-{number}" for number in range(BALLAST))
    assert peak_mebibytes(api) - before < 40  # MiB; 70 as one page


def test_names_that_are_told_back(client: httpx.Client) -> None:
    """R131: what is sent as the name of a parameter is to come back in the answer."""
    for path in ("history", "audit", "assets/battery-7/telemetry"):
        answer = client.get(f"/v1/namespaces/{OWN}/{path}", params={"<b>EVIL</b>": "1"})
        assert problem(answer, 422, "invalid")["errors"][0]["parameter"] == "query"
        assert "EVIL" not in answer.text


def peak_mebibytes(api: ApiProcess) -> float:
    status = Path(f"/proc/{api.process.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


@pytest.mark.parametrize("start", ["../../secrets", "/", "\x00", f"../{FOREIGN}/", ""])
def test_a_page_that_leads_elsewhere(client: httpx.Client, start: str) -> None:
    """R99: a page's token is forged, so that it begins in another namespace or kind."""
    token = {"v": "meta.k8s.io/v1", "rv": 1, "start": start}
    after = base64.urlsafe_b64encode(json.dumps(token).encode()).decode().rstrip("=")
    answer = client.get(DISPATCHES, params={"after": after})
    if answer.status_code == 200:  # it began somewhere in the own namespace
        assert {each["namespace"] for each in answer.json()["items"]} <= {OWN}
    else:
        assert answer.status_code in (410, 422), answer.text


@pytest.mark.parametrize(
    "params",
    [
        {"asset": "a,status.phase=Complete"},
        {"asset": "a%3D"},
        {"asset": "a=b"},
        {"phase": "Complete,spec.assetRef.name=a"},
        {"limit": "0"},
        {"limit": "100000"},
        {"limit": "1e2"},
    ],
    ids=str,
)
def test_a_filter_that_is_more_than_one(client: httpx.Client, params: dict[str, str]) -> None:
    """R100: a filter's value carries another one into the question to Kubernetes."""
    problem(client.get(DISPATCHES, params=params), 422, "invalid")


def test_a_cancel_for_another_object(client: httpx.Client, kube: ControlPlane) -> None:
    """R101: an order is made anew under its name while somebody cancels what it was."""
    first = post(client, {**ORDER, "name": "twice"}, "twice-1").json()
    kube.kubectl("delete", "dispatch", "twice", "-n", OWN)
    second = post(client, {**ORDER, "name": "twice"}, "twice-2")
    assert second.status_code == 201, second.text

    path = f"{DISPATCHES}/twice"
    problem(client.post(f"{path}/cancel", params={"uid": first["uid"]}), 409, "conflict")
    assert client.get(path).json()["desiredState"] == "Active"


@pytest.mark.parametrize("key", ["", " ", "a b", "ä", "x" * 129, "\x01"])
def test_a_key_that_is_none(client: httpx.Client, key: str) -> None:
    """R102: a key that is nothing, or two things."""
    try:
        answer = client.post(DISPATCHES, json=ORDER, headers=[(b"Idempotency-Key", key.encode())])
    except httpx.LocalProtocolError:
        return
    assert answer.status_code in (400, 422), answer.text
