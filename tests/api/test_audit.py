"""The audit by HTTP: the running API, RBAC of the real control plane, rows of the database."""

from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import httpx
import psycopg
import pytest
from tests.api.rig import ApiProcess, Tenant, problem
from tests.headend.storage.test_audit import make_chain
from tests.stack.controlplane import ControlPlane
from tests.waiting import until

from derops_headend.storage.audit import store

PATH = "/v1/namespaces/tenant-a/audit"
CHAIN = "seeded"


@pytest.fixture(scope="module")
def seeded(api_database_url: str, tenant_a: Tenant, tenant_b: Tenant) -> list[str]:
    """Have records of two tenants and of none, and return the requests of tenant-a.

    They are younger than the namespaces: what is older is not theirs.
    """
    at = datetime.now(UTC)
    with psycopg.connect(api_database_url, autocommit=True) as connection:
        for tenant in ("tenant-a", "tenant-b", ""):
            name = f"{CHAIN}-{tenant}"
            store(connection, make_chain(name, 25, at=at, namespace=tenant, name="seed"))
    return [f"{CHAIN}-tenant-a-{seq}" for seq in range(25, 0, -1)]


@pytest.fixture(scope="module")
def auditor(api: ApiProcess, tenant_a: Tenant, seeded: list[str]) -> Iterator[httpx.Client]:
    with api.client(tenant_a.token("auditor")) as client:
        yield client


@pytest.fixture(scope="module")
def chief(api: ApiProcess, kube: ControlPlane, tenant_b: Tenant) -> Iterator[httpx.Client]:
    """Return a client of an auditor of all namespaces."""
    kube.apply(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "chief-auditor"},
            "roleRef": {
                "apiGroup": "rbac.authorization.k8s.io",
                "kind": "ClusterRole",
                "name": "test-auditor",
            },
            "subjects": [{"kind": "ServiceAccount", "name": "nobody", "namespace": "tenant-b"}],
        }
    )
    with api.client(tenant_b.token("nobody")) as client:
        yield client


def listed(client: httpx.Client, path: str = PATH, **query: Any) -> list[dict[str, Any]]:
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return [each["record"] for each in answer.json()["items"]]


def test_pages_have_each_record_once_and_the_newest_first(
    auditor: httpx.Client, seeded: list[str]
) -> None:
    found: list[str] = []
    after: dict[str, str] = {}
    for _ in range(100):
        answer = auditor.get(PATH, params={"name": "seed", "limit": 7, **after}).json()
        found += [each["record"]["requestId"] for each in answer["items"]]
        if answer["next"] is None:
            break
        after = {"after": answer["next"]}

    assert found == seeded


def test_a_record_is_given_as_it_was_hashed(auditor: httpx.Client, seeded: list[str]) -> None:
    answer = auditor.get(PATH, params={"requestId": seeded[0]})

    (item,) = answer.json()["items"]
    text = answer.text.partition('"record":')[2].rpartition("}],")[0]
    assert item["hash"] == sha256(text.encode()).hexdigest()
    assert item["record"]["chain"] == "seeded-tenant-a"


def test_filters_narrow_it(auditor: httpx.Client, seeded: list[str]) -> None:
    all_of_it = {"name": "seed", "verb": "get", "resource": "derassets", "caller": "oidc:anna"}
    assert len(listed(auditor, **all_of_it)) == 25
    for name in all_of_it:
        assert listed(auditor, **all_of_it | {name: "other"}) == []
    at = datetime.fromisoformat(listed(auditor, requestId=seeded[10])[0]["at"])
    instant = at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert len(listed(auditor, name="seed", since=instant)) == 11
    assert len(listed(auditor, name="seed", until=instant)) == 14


async def test_that_somebody_looked_is_in_it(auditor: httpx.Client) -> None:
    answer = auditor.get(PATH, params={"limit": 1})
    request_id = answer.headers["x-request-id"]

    await until(lambda: listed(auditor, requestId=request_id))
    (record,) = listed(auditor, requestId=request_id)
    assert (record["verb"], record["resource"], record["namespace"]) == (
        "list",
        "audits",
        "tenant-a",
    )
    assert record["principal"]["name"] == "system:serviceaccount:tenant-a:auditor"
    assert record["decision"] == "allow"
    assert record["status"] == 200


def test_who_may_in_all_namespaces_sees_what_has_none(chief: httpx.Client, seeded: object) -> None:
    namespaces = {each.get("namespace") or None for each in listed(chief, "/v1/audit", name="seed")}

    assert namespaces == {"tenant-a", "tenant-b", None}


@pytest.mark.parametrize(
    ("query", "parameter"),
    [
        ("limit=501", "limit"),
        ("limit=0", "limit"),
        ("limit=1&limit=2", "limit"),
        ("after=nonsense", "after"),
        ("since=yesterday", "since"),
        ("until=2026-11-30T12:00:00", "until"),
        ("name=%00", "name"),
        ("order=asc", "query"),
    ],
)
def test_what_is_no_query_is_refused(auditor: httpx.Client, query: str, parameter: str) -> None:
    (fault, *_) = problem(auditor.get(f"{PATH}?{query}"), 422, "invalid")["errors"]

    assert fault["parameter"] == parameter


def test_who_may_not_learns_nothing(
    api: ApiProcess, tenant_a: Tenant, auditor: httpx.Client
) -> None:
    with api.client(tenant_a.token("dispatcher")) as dispatcher:
        problem(dispatcher.get(PATH), 404, "not-found")
        problem(dispatcher.get("/v1/audit"), 404, "not-found")
    problem(auditor.get("/v1/audit"), 404, "not-found")
