"""Uninstalling the whole product while it works, and installing it again."""

import json
from collections.abc import Iterator

import pytest
from tests.e2e.acting import Pilot, conditions, instant
from tests.stack.identities import NAMESPACE
from tests.stack.stack import Stack
from tests.stack.uninstalling import OPERATOR, UNINSTALL, Pods, account, uninstall
from tests.waiting import eventually

KINDS = ("dispatches", "derassets")


class Installation:
    """A stack of its own, as an uninstallation ends all that is there; its operator has a pod."""

    def __init__(self, stack: Stack, kubeconfig: str) -> None:
        self.stack = stack
        self.kubeconfig = kubeconfig
        self.pods = Pods(
            stack.control_plane,
            start=lambda: stack.restart("operator"),
            stop=stack.parts["operator"].terminate,
        )

    def uninstall(self, *options: str) -> tuple[int, str]:
        return uninstall(self.kubeconfig, *options)

    def end_headend(self) -> None:
        """Do as the removal of a release would, that leaves the volume of the event log."""
        for part in ("gateway", "writer"):
            self.stack.parts[part].terminate()

    def install_again(self) -> None:
        for part in ("gateway", "writer"):
            self.stack.restart(part)
        self.pods.install()

    def finalizers(self) -> list[str]:
        return [
            name
            for kind in KINDS
            for each in json.loads(self.stack.kubectl("get", kind, "-A", "-o", "json"))["items"]
            for name in each["metadata"].get("finalizers", [])
        ]


@pytest.fixture(scope="module")
def installation() -> Iterator[Installation]:
    with Stack() as stack:
        stack.parts["operator"].terminate()
        kubeconfig = account(stack.control_plane)
        installation = Installation(stack, kubeconfig)
        with installation.pods:
            yield installation


def test_what_runs_is_reverted_and_the_fleet_is_back_after_a_reinstallation(
    installation: Installation,
) -> None:
    pilot = Pilot(installation.stack, "moving")
    pilot.create_namespace()
    pilot.battery()
    pilot.battery("offline", connected=False)
    pilot.dispatch("running", durationSeconds=600)
    pilot.wait_for_phase("running", "Active")
    pilot.dispatch("later", startTime=instant(1800))
    pilot.wait_for_phase("later", "Acked")
    pilot.dispatch("unsent", asset="offline", startTime=instant(1800))
    pilot.dispatch("early", asset="nobody", startTime=instant(1800))
    eventually(lambda: pilot.status("unsent").get("phase"), "its first status")

    code, output = installation.uninstall()

    assert code == 0, output
    for name in ("running", "later", "unsent"):
        status = pilot.status(name)
        assert (status["phase"], conditions(status)["Reverted"]) == ("Cancelled", "True"), name
    assert pilot.powers_written() == [5000, 0]
    assert not installation.stack.parts["operator"].alive
    assert installation.finalizers() == []

    installation.end_headend()
    installation.install_again()
    pilot.wait_for_condition("derasset", "battery", "Connected", "True")
    pilot.dispatch("again", durationSeconds=2)
    pilot.wait_for_phase("again", "Complete")
    assert pilot.wait_for_phase("early", "Cancelled")["reason"] == "CancelledBeforeDelivery"
    assert pilot.powers_written() == [5000, 0, 5000, 0]
    pilot.delete_everything()


def test_an_agent_that_is_away_is_named_and_its_status_is_true_after_force_and_reinstallation(
    installation: Installation,
) -> None:
    pilot = Pilot(installation.stack, "away")
    pilot.create_namespace()
    pilot.battery()
    pilot.battery("offline", connected=False)
    pilot.dispatch("held", durationSeconds=600)
    pilot.dispatch("unsent", asset="offline", startTime=instant(1800))
    pilot.wait_for_phase("held", "Active")
    eventually(lambda: pilot.status("unsent").get("phase"), "its first status")
    pilot.stack.kill_agent(pilot.namespace, "battery")
    installation.stack.kill("gateway")

    code, output = installation.uninstall("--timeout-seconds", "3")

    assert code == 1, output
    named = output.partition("these are not known to be reverted")[2]
    assert "away/held: Active;" in named
    assert "its device may hold ActivePower 5000 W until" in named
    assert "away/unsent: Submitted;" in named
    assert installation.stack.parts["operator"].alive
    assert installation.pods.replicas() == 1

    force = ("annotate", "deployment", OPERATOR, "-n", NAMESPACE, f"{UNINSTALL}=Force")
    installation.stack.kubectl(*force, "--overwrite")
    code, output = installation.uninstall("--timeout-seconds", "1")

    assert code == 0, output
    assert installation.finalizers() == []
    assert pilot.status("held")["phase"] == "Active"

    installation.end_headend()
    installation.install_again()
    pilot.stack.restart_agent(pilot.namespace, "battery")
    for name in ("held", "unsent"):
        assert conditions(pilot.wait_for_phase(name, "Cancelled"))["Reverted"] == "True"
    assert pilot.powers_written() == [5000, 0]
    pilot.delete_everything()


def test_namespaces_and_kinds_are_deleted_by_hand_without_anything_that_hangs(
    installation: Installation,
) -> None:
    pilot = Pilot(installation.stack, "gone")
    pilot.create_namespace()
    pilot.battery()
    pilot.dispatch("running", durationSeconds=600)
    pilot.wait_for_phase("running", "Active")
    code, output = installation.uninstall()

    assert code == 0, output
    assert "is reverted" in output
    kubectl = installation.stack.kubectl
    kubectl("delete", "crd", *(f"{kind}.derops.io" for kind in KINDS), "--timeout=90s")
    kubectl("delete", "namespace", pilot.namespace, "--timeout=60s")
    assert pilot.powers_written() == [5000, 0]
    code, output = installation.uninstall()
    assert code == 0, output
