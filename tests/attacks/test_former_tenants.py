"""Attacks by who gets a namespace that has the name of one that was deleted."""

import time
from typing import Any, NamedTuple

import psycopg
import pytest
from tests.api.rig import ApiProcess, Tenant, make_tenant, make_token, problem
from tests.headend.writing.making import sources, transition
from tests.stack.controlplane import ControlPlane
from tests.waiting import until

from derops.wire.v1 import dispatch_pb2
from derops_headend.storage.database import WriterDatabase

NAMESPACE = "let-again"
ROWS = f"/v1/namespaces/{NAMESPACE}"
ASSET = f"{ROWS}/assets/battery"
OF_ASSET = [f"{ASSET}/{each}" for each in ("telemetry", "gaps", "connections", "measurements")]

pytestmark = pytest.mark.timeout(300)


DISPATCH = "5d1e2b7c-0000-4a54-b7c3-0d3a5d0d8a11"
"""Of the first tenant; the database is that of other tests as well."""


class Former(NamedTuple):
    """A namespace that was let to somebody else before."""

    tenant: Tenant
    request_id: str
    """Of a call of the one before."""


@pytest.fixture(scope="module")
def former(api: ApiProcess, kube: ControlPlane, api_database_url: str) -> Former:
    """Have a namespace made anew, whose first tenant's rows are in the database."""
    first = make_tenant(kube, NAMESPACE)
    store_rows(api_database_url, "first")
    with api.client(first.token("viewer")) as client:
        answers = [client.get(path) for path in (f"{ROWS}/history/{DISPATCH}", *OF_ASSET)]
        (item,) = client.get(f"{ROWS}/history").json()["items"]
    assert [each.status_code for each in answers] == [200] * len(answers)
    assert item["uid"] == DISPATCH
    kube.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s")
    return Former(make_tenant(kube, NAMESPACE), answers[0].headers["x-request-id"])


def store_rows(url: str, uid: str) -> None:
    """Store a dispatch and a sample, as of now."""
    database = WriterDatabase.connect(url, "former")
    after = database.committed()
    told = transition("Submitted", at_us=time.time_ns() // 1000, dispatch_uid=DISPATCH)
    told.asset.CopyFrom(dispatch_pb2.AssetId(namespace=NAMESPACE, name="battery", uid=uid))
    database.store(sources(told, offset=after + 1), after=after, through=after + 1)
    database.close()
    with psycopg.connect(url) as connection:
        connection.execute(
            "insert into asset (namespace, name, uid) values (%s, 'battery', %s) "
            "on conflict do nothing",
            (NAMESPACE, uid),
        )
        connection.execute("select ensure_telemetry_day((now() at time zone 'UTC')::date)")
        connection.execute(
            "insert into telemetry (asset_id, ts, active_power_watts, received_at) "
            "select asset_id, now(), 5, now() from asset where uid = %s",
            (uid,),
        )


async def test_the_history_of_the_one_before_is_not_theirs(api: ApiProcess, former: Former) -> None:
    """R169: a new tenant reads what became of another's dispatches, by list, sum or uid."""
    with api.client(former.tenant.token("viewer")) as client:
        # When a namespace was made is believed for 10 s.
        await until(lambda: client.get(f"{ROWS}/history").json()["items"] == [], 30)

        for query in ("", "?since=2020-01-01T00:00:00Z", f"?dispatch={DISPATCH}"):
            assert client.get(f"{ROWS}/history{query}").json()["items"] == []
            assert client.get(f"{ROWS}/history/summary{query}").json()["items"] == []
        problem(client.get(f"{ROWS}/history/{DISPATCH}"), 404, "not-found")


async def test_the_telemetry_of_the_one_before_is_not_theirs(
    api: ApiProcess, former: Former, api_database_url: str
) -> None:
    """R170: a new tenant reads what another's asset measured, by its name or its uid."""
    with api.client(former.tenant.token("viewer")) as client:
        await until(lambda: client.get(OF_ASSET[0]).status_code == 404, 30)
        for path in OF_ASSET:
            problem(client.get(path), 404, "not-found")
            problem(client.get(f"{path}?uid=first"), 404, "not-found")

        store_rows(api_database_url, "second")

        for path in OF_ASSET:
            answer = client.get(path).json()
            assert (answer["uid"], answer["otherUids"]) == ("second", [])
            problem(client.get(f"{path}?uid=first"), 404, "not-found")


async def test_the_audit_of_the_one_before_is_not_theirs(
    api: ApiProcess, former: Former, api_database_url: str
) -> None:
    """R171: a new tenant reads who ordered and asked what of another."""
    with psycopg.connect(api_database_url, autocommit=True) as connection:
        await until(
            lambda: connection.execute(
                "select from audit_event where request_id = %s", (former.request_id,)
            ).fetchall()
        )
    with api.client(former.tenant.token("auditor")) as client:

        def told(query: str = "") -> list[Any]:
            items: list[Any] = client.get(f"{ROWS}/audit?{query}").json()["items"]
            return items

        old = f"requestId={former.request_id}"
        await until(lambda: told(old) == [], 30)
        assert told(f"{old}&since=2020-01-01T00:00:00Z") == []
        await until(told)  # its own calls


async def test_who_has_the_right_in_all_namespaces_sees_what_was_before(
    api: ApiProcess, former: Former, kube: ControlPlane
) -> None:
    kube.kubectl("create", "serviceaccount", "everywhere", "-n", "default")
    for role in ("viewer", "auditor"):
        kube.kubectl(
            "create", "clusterrolebinding", f"everywhere-{role}",
            f"--clusterrole=test-{role}", "--serviceaccount=default:everywhere",
        )  # fmt: skip
    try:
        with api.client(make_token(kube, "default", "everywhere")) as client:
            items = client.get(f"{ROWS}/history").json()["items"]
            assert DISPATCH in {each["uid"] for each in items}
            for path in OF_ASSET:
                assert client.get(f"{path}?uid=first").status_code == 200
            old = f"{ROWS}/audit?requestId={former.request_id}"
            assert client.get(old).json()["items"]
    finally:
        for role in ("viewer", "auditor"):
            kube.kubectl("delete", "clusterrolebinding", f"everywhere-{role}")
