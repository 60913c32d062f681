"""From nothing to the first Complete, one by REST, the chart's own test. ``.ci/run`` runs this."""

import os
import time
from contextlib import closing

from tests.cluster import database, installing
from tests.cluster.cluster import Cluster
from tests.cluster.figures import say
from tests.cluster.proving import assert_true
from tests.cluster.site import TEST_LABEL, Site, namespace_manifest
from tests.stack.calling import Caller
from tests.waiting import eventually


def test_from_nothing_to_the_first_complete(bare: Cluster) -> None:
    since = time.monotonic()
    seconds = installing.install_by_chart(bare)
    installing.wait_until_ready(bare)
    site = Site(bare, "smoke")
    site.create_namespace()
    site.battery()
    site.dispatch("first", durationSeconds=20)
    status = site.wait_for_phase("first", "Complete")
    if "DEROPS_BEGUN" in os.environ:  # make cluster-smoke says when it began
        say("nothing_to_complete", time.time() - float(os.environ["DEROPS_BEGUN"]), "s", 240)
    say("install_to_complete", time.monotonic() - since, "s", 240)
    say("install_to_ready", seconds, "s", 60)

    assert status["execution"]["evidence"] == "Effect"
    assert_true(site, "first")
    assert eventually(lambda: site.samples()[-1:], "telemetry")


def test_a_token_of_kubectl_orders_by_rest(cluster: Cluster, site: Site) -> None:
    site.battery()
    callers = f"{site.namespace}-callers"
    cluster.apply(namespace_manifest(callers, **{TEST_LABEL: "true"}))
    cluster.kubectl("create", "serviceaccount", "trading", "-n", callers)
    cluster.kubectl(
        "create", "rolebinding", "trading", "--clusterrole=derops-dispatcher",
        f"--serviceaccount={callers}:trading", "-n", site.namespace,
    )  # fmt: skip
    trust = cluster.get("configmap", "derops-server-ca", "-n", installing.NAMESPACE)

    with cluster.forwarded("derops-api", installing.NAMESPACE, 443) as port:
        url, account = f"https://127.0.0.1:{port}", (callers, "trading")
        caller = Caller(cluster.kubectl, account, url, trust["data"]["ca.crt"], "derops-api")
        with closing(caller):
            since = time.monotonic()
            made = caller.order(
                site.namespace,
                "smoke",
                asset="battery",
                setpoint={"mode": "ActivePower", "activePowerWatts": 3000},
                durationSeconds=10,
            )
            say("order_by_rest", (time.monotonic() - since) * 1000, "ms", 1000)
    status = site.wait_for_phase(made["name"], "Complete")

    assert status["createdBy"] == f"system:serviceaccount:{callers}:trading"
    assert status["execution"]["evidence"] == "Effect"
    eventually(lambda: recorded(cluster, made["requestId"]) == 2, "the records of the order")


def recorded(cluster: Cluster, request_id: str) -> int:
    """Return how many records of a call are in the database."""
    (row,) = database.rows(
        cluster, f"select count(*) as n from audit_event where request_id = '{request_id}'"
    )
    return int(row["n"])


def test_the_chart_tests_itself(cluster: Cluster) -> None:
    since = time.monotonic()
    # Only on a Complete with evidence Effect and rows in the database does its pod succeed. No
    # --logs: a pod that succeeded is gone.
    said = cluster.helm("test", installing.RELEASE, "-n", installing.NAMESPACE, "--timeout", "180s")
    say("helm_test", time.monotonic() - since, "s", 60)

    assert "Succeeded" in said
    assert "Failed" not in said
