"""Without Helm: the rendered manifests by kubectl, and uninstalling by commands."""

import time

from tests.cluster import installing
from tests.cluster.cluster import Cluster
from tests.cluster.figures import say
from tests.cluster.leaving import assert_nothing_left, delete_by_hand, finalizers
from tests.cluster.proving import assert_true
from tests.cluster.site import Site
from tests.e2e.acting import conditions
from tests.stack.uninstalling import documented_commands


def test_installed_and_uninstalled_by_kubectl_alone(empty: Cluster) -> None:
    manifests = str(installing.render())
    since = time.monotonic()
    empty.kubectl("apply", "--server-side", "-f", manifests)
    installing.wait_until_ready(empty)
    say("apply_to_ready", time.monotonic() - since, "s", 60)
    site = Site(empty, "by-manifests")
    site.create_namespace()
    site.battery()
    site.dispatch("first", durationSeconds=20)
    assert site.wait_for_phase("first", "Complete")["execution"]["evidence"] == "Effect"
    assert_true(site, "first")

    setpoint = {"mode": "ActivePower", "activePowerWatts": 4300}
    site.dispatch("running", setpoint=setpoint, durationSeconds=900)
    site.wait_for_phase("running", "Active")
    step, *_ = documented_commands("Without Helm")
    empty.shell(step)

    status = site.status("running")
    assert status["phase"] == "Cancelled"
    assert conditions(status)["Reverted"] == "True"
    assert site.powers_written() == [5000, 0, 4300, 0]
    assert finalizers(site) == {"battery": None, "first": None, "running": None}
    empty.kubectl("delete", "-f", manifests, "--timeout=120s")
    delete_by_hand(empty, site)
    assert_nothing_left(empty)
