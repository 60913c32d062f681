"""What a dispatch is told in the cluster, with nothing disturbed: Complete, Rejected, Cancelled."""

from tests.cluster.cluster import Cluster
from tests.cluster.proving import assert_true
from tests.cluster.site import Site
from tests.e2e.acting import conditions
from tests.waiting import eventually


def test_complete_is_what_the_device_did(site: Site) -> None:
    site.battery()

    site.dispatch("undisturbed", durationSeconds=20)
    status = site.wait_for_phase("undisturbed", "Complete")

    assert status["execution"]["evidence"] == "Effect"
    assert conditions(status)["Succeeded"] == "True"
    assert site.powers_written() == [5000, 0]
    assert_true(site, "undisturbed")


def test_rejected_never_reaches_the_device(site: Site) -> None:
    site.battery()

    site.dispatch("too-much", setpoint={"mode": "ActivePower", "activePowerWatts": 9000})
    status = site.wait_for_phase("too-much", "Rejected")

    assert status["reason"] == "LimitExceeded"
    assert "8000 W" in status["message"]
    assert site.powers_written() == []


def test_cancelled_while_active_is_reverted(site: Site) -> None:
    site.battery()
    site.dispatch("running", durationSeconds=300)
    site.wait_for_phase("running", "Active")

    site.cancel("running")
    status = site.wait_for_phase("running", "Cancelled")

    assert status["reason"] == "CancelledWhileActive"
    assert conditions(status)["Reverted"] == "True"
    assert site.powers_written() == [5000, 0]
    assert_true(site, "running")


def test_describe_tells_the_story(cluster: Cluster, site: Site) -> None:
    site.battery()
    site.dispatch("told", durationSeconds=3)
    site.wait_for_phase("told", "Complete")

    def story() -> str | None:
        described = cluster.kubectl("describe", "dispatch", "told", "-n", site.namespace)
        return described if "WindowEnded" in described or "Complete:" in described else None

    described = eventually(story, "the last Event")
    events = described.partition("Events:")[2]
    for step in ("Submitted", "Sent", "Acked", "Active", "Complete"):
        assert step in events, step
    assert "WindowEnded" in described
