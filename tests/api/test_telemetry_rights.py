"""Whose telemetry a caller may read: as Kubernetes' RBAC says, asked by the program itself."""

import psycopg
import pytest
from tests.api.rig import ApiProcess, Tenant, problem


@pytest.fixture
def measured(api_database_url: str, tenant_a: Tenant, tenant_b: Tenant) -> None:
    """Have a sample of an asset of each tenant, which Kubernetes does not know any more."""
    with psycopg.connect(api_database_url) as connection:
        for tenant in (tenant_a, tenant_b):
            connection.execute(
                "insert into asset (namespace, name, uid) values (%s, 'battery', %s)",
                (tenant.namespace, f"uid-{tenant.namespace}"),
            )
        connection.execute("select ensure_telemetry_day((now() at time zone 'UTC')::date)")
        connection.execute(
            "insert into telemetry (asset_id, ts, active_power_watts, received_at) "
            "select asset_id, now(), 5, now() from asset where name = 'battery'"
        )


@pytest.mark.usefixtures("measured")
def test_telemetry_is_for_those_who_have_the_right_in_its_namespace(
    api: ApiProcess, tenant_a: Tenant, tenant_b: Tenant
) -> None:
    own = f"/v1/namespaces/{tenant_a.namespace}/assets/battery/telemetry"
    foreign = f"/v1/namespaces/{tenant_b.namespace}/assets/battery/telemetry"
    nothing = f"/v1/namespaces/{tenant_a.namespace}/assets/nothing/telemetry"

    with api.client(tenant_a.token("viewer")) as viewer:
        answer = viewer.get(own)
        assert answer.status_code == 200, answer.text
        assert answer.json()["activePowerWatts"] == [5]
        refused = [problem(viewer.get(path), 404, "not-found") for path in (foreign, nothing)]
    with api.client(tenant_a.token("nobody")) as nobody:
        refused.append(problem(nobody.get(own), 404, "not-found"))
    assert len({(each["title"], each["detail"]) for each in refused}) == 1
    with api.client() as stranger:
        problem(stranger.get(own), 401, "unauthenticated")
