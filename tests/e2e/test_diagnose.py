"""kubectl derops on the whole product: by Kubernetes alone, and with the database's word."""

import json

import pytest
from tests.cli import clusters
from tests.cli.clusters import Ran
from tests.e2e.acting import Pilot
from tests.waiting import eventually

ACCOUNT = "on-call"


@pytest.fixture
def on_call(pilot: Pilot) -> str:
    """Return an account of the pilot's namespace that may look, as NAMESPACE/NAME."""
    pilot.stack.kubectl("create", "serviceaccount", ACCOUNT, "-n", pilot.namespace)
    pilot.stack.kubectl(
        "create", "rolebinding", ACCOUNT, "-n", pilot.namespace, "--clusterrole=derops-viewer",
        f"--serviceaccount={pilot.namespace}:{ACCOUNT}",
    )  # fmt: skip
    return f"{pilot.namespace}/{ACCOUNT}"


def diagnose(pilot: Pilot, *arguments: str) -> Ran:
    return clusters.patient(
        "diagnose", "battery", "-n", pilot.namespace, "-o", "json", *arguments,
        kubeconfig=pilot.stack.kubeconfig,
    )  # fmt: skip


def by_api(pilot: Pilot, account: str) -> tuple[str, ...]:
    ca = str(pilot.stack.identities.server_ca)
    return ("--as-service-account", account, "--api-url", pilot.stack.api_url, "--api-ca", ca)


def test_a_row_in_the_database_proves_that_data_flows(pilot: Pilot, on_call: str) -> None:
    pilot.battery()

    def flows() -> Ran | None:
        done = diagnose(pilot, *by_api(pilot, on_call))
        fresh = done.json["links"][-1]
        return done if fresh["state"] == "Holds" else None

    done = eventually(flows, "a fresh row")

    assert (done.code, done.err) == (0, "")
    assert done.json["verdict"] == "Flows"
    assert {each["state"] for each in done.json["links"]} == {"Holds"}
    evidence = done.json["links"][-1]["evidence"]
    assert [each["what"] for each in evidence] == ["newest sample", "came to the gateway"]
    story = clusters.patient(
        "timeline", "battery", "-n", pilot.namespace, *by_api(pilot, on_call),
        kubeconfig=pilot.stack.kubeconfig,
    )  # fmt: skip
    assert "Connection" in story.out


def test_an_agent_that_died_is_named_by_kubernetes_alone(pilot: Pilot) -> None:
    pilot.battery()
    pilot.stack.kill_agent(pilot.namespace, "battery")
    pilot.wait_for_condition("derasset", "battery", "Connected", "False")

    done = diagnose(pilot)

    assert (done.code, done.err) == (1, "")
    assert (done.json["firstBroken"], done.json["reason"]) == ("Stream", "AgentOffline")
    pilot.stack.restart_agent(pilot.namespace, "battery")
    pilot.wait_for_condition("derasset", "battery", "Connected", "True")


def test_the_installation_holds_while_nothing_is_broken(pilot: Pilot) -> None:
    def holds() -> Ran | None:
        done = clusters.patient("diagnose", "-o", "json", kubeconfig=pilot.stack.kubeconfig)
        return done if done.json["verdict"] == "Flows" else None

    done = eventually(holds, "an installation that holds")

    assert done.code == 0
    assert done.json["operator"]["state"] == "Holds"


def test_who_may_not_see_telemetry_is_told_the_right(pilot: Pilot) -> None:
    pilot.battery()
    stranger = f"{pilot.namespace}/stranger"
    pilot.stack.kubectl("create", "serviceaccount", "stranger", "-n", pilot.namespace)

    done = diagnose(pilot, *by_api(pilot, stranger))

    rights = [each["right"] for each in done.json["missing"] if each["right"]]
    assert {each["resource"] for each in rights} == {"derassets.derops.io"}
    assert done.json["links"][-1]["state"] == "NotLookedAt"


def test_a_token_that_is_none_and_an_api_that_is_away_are_told(pilot: Pilot) -> None:
    pilot.battery()
    ca = str(pilot.stack.identities.server_ca)

    refused = diagnose(pilot, "--token=none", "--api-url", pilot.stack.api_url, "--api-ca", ca)
    away = diagnose(pilot, "--token=none", "--api-url", "https://127.0.0.1:1")
    without_a_file = diagnose(pilot, "--token=none", "--api-url", pilot.stack.api_url)

    for done, words in (
        (refused, "does not take the token"),
        (away, "does not answer"),
        (without_a_file, "does not take the token"),  # a ConfigMap has the authority
    ):
        told = json.dumps(done.json["missing"])
        assert words in told
        assert "Traceback" not in done.err
