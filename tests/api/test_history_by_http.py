"""History by HTTP of the running API: who may see it is a question to Kubernetes."""

import time

import psycopg
import pytest
from tests.api.rig import ApiProcess, Tenant, problem
from tests.headend.writing.making import DISPATCH, report, sources, transition
from tests.waiting import until

from derops.wire.v1 import dispatch_pb2, log_pb2
from derops_headend.storage.database import WriterDatabase


def at(at_us: int, told: log_pb2.LogEntry) -> log_pb2.LogEntry:
    """Have a report's steps begin at an instant: what was before the namespace is not told."""
    body = dispatch_pb2.DispatchReport.FromString(told.body)
    for number, step in enumerate(body.transitions, 1):
        step.at_us = at_us + number
    told.body = body.SerializeToString()
    return told


@pytest.fixture
def dispatched(api_database_url: str) -> None:
    """Have one dispatch of tenant-a in the database."""
    database = WriterDatabase.connect(api_database_url, "history")
    after = database.committed()
    now_us = time.time_ns() // 1000
    told = [
        transition("Submitted", at_us=now_us),
        at(now_us, report("Acked", "Complete", sequence=2, applied_us=5)),
    ]
    for each in told:
        each.asset.CopyFrom(dispatch_pb2.AssetId(namespace="tenant-a", name="battery", uid="u"))
    database.store(sources(*told, offset=after + 1), after=after, through=after + 1)
    database.close()


def test_it_is_for_who_may_list_dispatches(
    api: ApiProcess, tenant_a: Tenant, tenant_b: Tenant, dispatched: None
) -> None:
    path = "/v1/namespaces/tenant-a/history"
    paths = (path, f"{path}/summary", f"{path}/{DISPATCH}")
    with api.client(tenant_a.token("viewer")) as client:
        page, summary, one = (client.get(each) for each in paths)
    (item,) = page.json()["items"]
    assert (item["uid"], item["asset"], item["applied"]) == (DISPATCH, "battery", True)
    assert [each["dispatches"] for each in summary.json()["items"]] == [1]
    assert [each["phase"] for each in one.json()["steps"]][1:] == ["Acked", "Complete"]
    for stranger in (tenant_a.token("auditor"), tenant_b.token("viewer")):
        with api.client(stranger) as client:
            for each in paths:
                problem(client.get(each), 404, "not-found")


async def test_a_read_of_it_is_in_the_audit(
    api: ApiProcess, tenant_a: Tenant, api_database_url: str, dispatched: None
) -> None:
    with api.client(tenant_a.token("viewer")) as client:
        answer = client.get(f"/v1/namespaces/tenant-a/history/{DISPATCH}")
    assert answer.status_code == 200

    with psycopg.connect(api_database_url, autocommit=True) as connection:

        def told() -> list[tuple[object, ...]]:
            return connection.execute(
                "select namespace, verb, resource, object_uid, status from audit_event "
                "where request_id = %s",
                (answer.headers["x-request-id"],),
            ).fetchall()

        await until(told)
        assert told() == [("tenant-a", "list", "dispatches", DISPATCH, 200)]
