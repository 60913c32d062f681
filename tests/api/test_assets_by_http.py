"""DERAssets by REST, on a real API server and database."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import psycopg
import pytest
from tests.api.rig import ApiProcess, Tenant, make_tenant, problem
from tests.crds.asset_rules import of_type
from tests.crds.manifests import BATTERY, merged
from tests.stack.controlplane import ControlPlane
from tests.waiting import eventually

PATH = "/v1/namespaces/assets-a/assets"


@pytest.fixture(scope="module")
def tenant(kube: ControlPlane, api: ApiProcess) -> Tenant:
    """Return a tenant with three assets, beside one with another."""
    made, neighbour = make_tenant(kube, "assets-a"), make_tenant(kube, "assets-b")
    for namespace, name, patch in (
        (made.namespace, "battery-1", {"metadata": {"labels": {"site": "north"}}}),
        (made.namespace, "battery-2", {"spec": {"operatingState": "OutOfService"}}),
        (made.namespace, "solar-1", of_type("Solar")),
        (neighbour.namespace, "battery-1", {}),
    ):
        identity = {"metadata": {"namespace": namespace, "name": name}}
        kube.apply(merged(merged(BATTERY, identity), patch))
    return made


@pytest.fixture(scope="module")
def client(api: ApiProcess, tenant: Tenant) -> Iterator[httpx.Client]:
    with api.client(tenant.token("viewer")) as opened:
        eventually(lambda: len(opened.get(PATH).json()["items"]) == 3)
        yield opened


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [each["name"] for each in answer.json()["items"]]


@pytest.mark.parametrize(
    ("params", "found"),
    [
        ({}, ["battery-1", "battery-2", "solar-1"]),
        ({"type": "Solar"}, ["solar-1"]),
        ({"operatingState": "OutOfService"}, ["battery-2"]),
        ({"label": "site=north"}, ["battery-1"]),
        ({"label": "site"}, ["battery-1"]),
        ({"q": "BATT"}, ["battery-1", "battery-2"]),
        ({"ready": "True"}, []),
        ({"connected": "Unknown", "order": "desc"}, ["solar-1", "battery-2", "battery-1"]),
        ({"sort": "operatingState"}, ["battery-1", "solar-1", "battery-2"]),
        ({"limit": "1"}, ["battery-1"]),
    ],
)
def test_a_list_is_filtered_and_sorted(
    client: httpx.Client, params: dict[str, str], found: list[str]
) -> None:
    assert names(client.get(PATH, params=params)) == found


def test_a_list_comes_in_pages(client: httpx.Client) -> None:
    first = client.get(PATH, params={"limit": 2})
    second = client.get(PATH, params={"limit": 2, "after": first.json()["next"]})

    assert names(first) + names(second) == ["battery-1", "battery-2", "solar-1"]
    assert "next" not in second.json()
    assert problem(client.get(PATH, params={"after": "x"}), 422, "invalid")


def test_a_list_of_all_says_where_it_looked(client: httpx.Client) -> None:
    answer = client.get("/v1/assets").json()
    chosen = client.get("/v1/assets", params={"namespace": ["assets-a", "assets-b"]}).json()

    assert answer["namespaces"] == chosen["namespaces"] == ["assets-a"]
    assert {each["namespace"] for each in answer["items"]} == {"assets-a"}


def test_one_asset_has_its_newest_sample(client: httpx.Client, api_database_url: str) -> None:
    path = f"{PATH}/battery-1"
    before = client.get(path)
    assert before.json()["spec"]["limits"]["onExceed"] == "Reject"
    assert "newest" not in before.json()
    at = datetime.now(UTC) - timedelta(seconds=30)
    with psycopg.connect(api_database_url) as connection:
        row = connection.execute(
            "insert into asset (namespace, name, uid) values ('assets-a', 'battery-1', %s) "
            "returning asset_id",
            (before.json()["uid"],),
        ).fetchone()
        assert row is not None
        connection.execute("select ensure_telemetry_day(%s::date)", (at,))
        connection.execute(
            "insert into telemetry (asset_id, ts, active_power_watts, received_at) "
            "values (%s, %s, 1234, now())",
            (row[0], at),
        )

    answer = client.get(path, headers={"If-None-Match": before.headers["etag"]})

    newest = answer.json()["newest"]
    assert newest["values"] == {"activePowerWatts": 1234}
    assert 30 <= newest["ageSeconds"] < 60
    assert answer.json()["missing"] == []
    unchanged = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
    assert (unchanged.status_code, unchanged.content) == (304, b"")


def test_a_list_that_did_not_change_is_not_sent_again(client: httpx.Client) -> None:
    etag = client.get(PATH).headers["etag"]

    assert etag.startswith('W/"')
    assert client.get(PATH, headers={"If-None-Match": etag}).status_code == 304
    assert client.get(PATH, params={"limit": 2}, headers={"If-None-Match": etag}).is_success


def test_not_there_and_not_mine_are_the_same(client: httpx.Client) -> None:
    foreign = client.get("/v1/namespaces/assets-b/assets/battery-1")
    absent = client.get("/v1/namespaces/assets-b/assets/nothing")
    bodies = [problem(each, 404, "not-found") for each in (foreign, absent)]
    assert bodies[0]["detail"] == bodies[1]["detail"]
    problem(client.get(f"{PATH}/nothing"), 404, "not-found")


def test_without_the_database_the_rest_is_answered(
    client: httpx.Client, api_database_url: str
) -> None:
    with psycopg.connect(api_database_url) as connection:
        connection.execute("lock table telemetry in access exclusive mode")
        answer = client.get(f"{PATH}/battery-2")

    assert answer.status_code == 200, answer.text
    assert answer.json()["missing"] == ["database"]
    assert answer.json()["spec"]["operatingState"] == "OutOfService"
