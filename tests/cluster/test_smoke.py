"""From nothing to the first Complete, and the chart's own test. ``.ci/run`` runs this."""

import os
import time

from tests.cluster import installing
from tests.cluster.cluster import Cluster
from tests.cluster.figures import say
from tests.cluster.proving import assert_true
from tests.cluster.site import Site
from tests.e2e.acting import eventually


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


def test_the_chart_tests_itself(cluster: Cluster) -> None:
    since = time.monotonic()
    # Only on a Complete with evidence Effect and rows in the database does its pod succeed. No
    # --logs: a pod that succeeded is gone.
    said = cluster.helm("test", installing.RELEASE, "-n", installing.NAMESPACE, "--timeout", "180s")
    say("helm_test", time.monotonic() - since, "s", 60)

    assert "Succeeded" in said
    assert "Failed" not in said
