"""Uninstalling: what runs is ended and reverted first, and nothing hangs or stays afterwards."""

import json
import re

import pytest
from tests.cluster import installing
from tests.cluster.certificates import secret
from tests.cluster.cluster import Cluster, HelmError
from tests.cluster.installing import NAMESPACE, RELEASE
from tests.cluster.leaving import (
    assert_nothing_left,
    delete_by_hand,
    finalizers,
    written_by_operator,
)
from tests.cluster.proving import assert_true
from tests.cluster.site import Site
from tests.e2e.acting import conditions
from tests.waiting import eventually

AUTHORITIES = ("derops-server-ca", "derops-control-ca", "derops-database-ca")


def test_uninstall_with_nothing_running_leaves_nothing(cluster: Cluster, site: Site) -> None:
    site.battery()

    uninstall(cluster)

    delete_by_hand(cluster, site)
    assert_nothing_left(cluster)


def test_uninstall_ends_and_reverts_what_runs(cluster: Cluster, site: Site) -> None:
    site.battery()
    site.dispatch("running", durationSeconds=900)
    site.wait_for_phase("running", "Active")

    uninstall(cluster)

    status = site.status("running")
    assert status["phase"] == "Cancelled"
    assert conditions(status)["Reverted"] == "True"
    assert site.powers_written() == [5000, 0]
    assert finalizers(site) == {"battery": None, "running": None}
    assert written_by_operator(site) == set()
    delete_by_hand(cluster, site)
    assert_nothing_left(cluster)


def test_uninstall_is_refused_while_an_agent_is_away_unless_forced(
    cluster: Cluster, site: Site
) -> None:
    site.battery()
    installing.install_by_chart(cluster, "--set", "uninstall.timeoutSeconds=10")
    site.dispatch("unheard", durationSeconds=900)
    site.wait_for_phase("unheard", "Active")
    site.stop_agent()

    with pytest.raises(HelmError) as refused:
        uninstall(cluster)

    told = str(refused.value) + said_by_job(cluster)
    assert f"{site.namespace}/unheard" in told
    assert finalizers(site)["unheard"]
    installing.wait_until_ready(cluster)
    force, *_ = re.findall(r"^ *(kubectl annotate deployment derops-operator .*)$", told, re.M)
    cluster.shell(force)
    uninstall(cluster)
    assert finalizers(site) == {"battery": None, "unheard": None}
    assert written_by_operator(site) == {"configmap/derops-server-ca"}
    delete_by_hand(cluster, site)
    assert_nothing_left(cluster)


def test_what_was_refused_is_kept_and_ended_once_the_agent_is_back(
    cluster: Cluster, site: Site
) -> None:
    site.battery()
    installing.install_by_chart(cluster, "--set", "uninstall.timeoutSeconds=10")
    site.dispatch("late", durationSeconds=900)
    site.wait_for_phase("late", "Active")
    site.stop_agent()
    with pytest.raises(HelmError):
        uninstall(cluster)

    cluster.helm("rollback", RELEASE, _revision(cluster), "-n", NAMESPACE, "--wait")
    assert installing.is_installed(cluster)
    installing.install_by_chart(cluster)
    site.resume_agent()
    site.wait_for_phase("late", "Cancelled")
    uninstall(cluster)

    assert site.powers_written() == [5000, 0]
    assert finalizers(site) == {"battery": None, "late": None}


def test_reinstalled_the_fleet_is_back_with_its_authorities_and_history(
    cluster: Cluster, site: Site
) -> None:
    site.battery()
    site.dispatch("before", durationSeconds=8)
    site.wait_for_phase("before", "Complete")
    assert_true(site, "before")
    keys = {name: secret(cluster, NAMESPACE, name) for name in AUTHORITIES}
    agents = secret(cluster, "cert-manager", "derops-agent-ca")
    uid = site.get("derasset", "battery")["metadata"]["uid"]
    restarts = _restarts(site)

    written = written_by_operator(site)
    uninstall(cluster)
    left = written_by_operator(site)
    installing.install_by_chart(cluster)
    installing.wait_until_ready(cluster)
    site.wait_for_agent()

    assert {name: secret(cluster, NAMESPACE, name) for name in AUTHORITIES} == keys
    assert secret(cluster, "cert-manager", "derops-agent-ca") == agents
    assert site.get("derasset", "battery")["metadata"]["uid"] == uid
    assert _restarts(site) == restarts
    assert left == set()
    eventually(lambda: written_by_operator(site) == written, "what the operator writes")
    assert_true(site, "before")
    setpoint = {"mode": "ActivePower", "activePowerWatts": 4200}
    site.dispatch("after", setpoint=setpoint, durationSeconds=8)
    site.wait_for_phase("after", "Complete")
    assert_true(site, "after")


def uninstall(cluster: Cluster) -> None:
    """Uninstall as the guide says."""
    cluster.helm("uninstall", RELEASE, "-n", NAMESPACE, "--timeout", "240s", "--wait")


def said_by_job(cluster: Cluster) -> str:
    """Return what the uninstalling Job printed."""
    return cluster.kubectl("logs", "job/derops-uninstall", "-n", NAMESPACE, "--tail=50")


def _revision(cluster: Cluster) -> str:
    """Return the last revision of the release."""
    known = json.loads(cluster.helm("history", RELEASE, "-n", NAMESPACE, "-o", "json"))
    return str(known[-1]["revision"])


def _restarts(site: Site) -> int:
    (pod,) = site.cluster.items("pods", "-n", site.namespace)
    return int(pod["status"]["containerStatuses"][0]["restartCount"])
