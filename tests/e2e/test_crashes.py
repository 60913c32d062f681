"""kill -9 of each part in mid-dispatch: the status must end true."""

import json

import pytest
from tests.e2e.acting import Pilot, conditions, parse
from tests.stack import ops
from tests.waiting import eventually


@pytest.mark.parametrize("part", ["operator", "gateway", "writer"])
def test_killing_a_part_in_mid_dispatch_leaves_a_true_status(pilot: Pilot, part: str) -> None:
    pilot.battery()
    starved = pilot.starved()
    pilot.dispatch("through", durationSeconds=12)
    pilot.wait_for_phase("through", "Active")

    pilot.stack.kill(part)
    pilot.stack.restart(part)
    status = pilot.wait_for_phase("through", "Complete")

    assert pilot.powers_written() == [5000, 0]
    assert abs(status["execution"]["activeSeconds"] - 12) <= 1 + starved.seconds()


def test_a_dispatch_ends_on_time_while_operator_and_gateway_are_away(pilot: Pilot) -> None:
    pilot.battery()
    starved = pilot.starved()
    pilot.dispatch("alone", durationSeconds=6)
    planned = pilot.wait_for_phase("alone", "Active")["timeline"]["plannedEnd"]

    pilot.stack.kill("operator")
    pilot.stack.kill("gateway")
    powers_without_headend = _wait_for_release(pilot)
    pilot.stack.restart("gateway")
    pilot.stack.restart("operator")
    status = pilot.wait_for_phase("alone", "Complete")

    assert powers_without_headend == [5000, 0]
    lateness = parse(status["timeline"]["revertedAt"]) - parse(planned)
    assert abs(lateness.total_seconds()) < 1 + starved.seconds()


def test_an_agent_that_dies_resumes_and_says_so(pilot: Pilot) -> None:
    pilot.battery()
    pilot.dispatch("resumed", durationSeconds=15)
    pilot.wait_for_phase("resumed", "Active")

    pilot.stack.kill_agent(pilot.namespace, "battery")
    pilot.stack.restart_agent(pilot.namespace, "battery")
    status = pilot.wait_for_phase("resumed", "Complete")

    assert status["execution"]["interruptions"] == 1
    assert pilot.powers_written()[-1] == 0
    assert conditions(status)["Reverted"] == "True"


def test_an_agent_that_crashes_again_and_again_is_no_thief(pilot: Pilot) -> None:
    pilot.battery()
    port = pilot.stack.fleet.get(pilot.namespace, "battery").ops_port
    for _ in range(6):
        pilot.stack.kill_agent(pilot.namespace, "battery")
        pilot.stack.restart_agent(pilot.namespace, "battery")
        # The status tells times to the second, and two lives may share one: the new life is asked.
        eventually(lambda: ops.metric(port, "derops_agent_connected_assets") == 1, "a stream")
    pilot.dispatch("after", durationSeconds=8)
    pilot.wait_for_phase("after", "Complete")

    assert "quarantine" not in pilot.get("derasset", "battery")["status"]["identity"]


def test_an_agent_away_past_the_end_does_not_claim_success(pilot: Pilot) -> None:
    pilot.battery()
    pilot.dispatch("overrun", durationSeconds=5)
    end = parse(pilot.wait_for_phase("overrun", "Active")["timeline"]["plannedEnd"])

    pilot.stack.kill_agent(pilot.namespace, "battery")
    _wait_until(end.timestamp() + 12)
    pilot.stack.restart_agent(pilot.namespace, "battery")
    status = pilot.wait_for_phase("overrun", "Failed")

    assert status["reason"] == "RevertedLate"
    assert status["execution"]["activeSeconds"] >= 16
    assert pilot.powers_written() == [5000, 0]


def test_what_nobody_confirms_within_a_minute_is_said_not_to_be_known(pilot: Pilot) -> None:
    for asset in ("left", "retired"):
        pilot.battery(asset)
        pilot.dispatch(f"on-{asset}", asset=asset, durationSeconds=600)
        pilot.wait_for_phase(f"on-{asset}", "Active")
        pilot.stack.kill_agent(pilot.namespace, asset)

    where = ["-n", pilot.namespace]
    retire = '{"spec":{"operatingState":"OutOfService"}}'
    pilot.stack.kubectl("patch", "derasset", "retired", *where, "--type=merge", "-p", retire)
    pilot.stack.kubectl("delete", "dispatch", "on-left", *where, "--timeout=90s")

    told = eventually(lambda: both if len(both := _unknown(pilot)) > 1 else None, "the Events")
    assert told.keys() == {"on-left", "retired"}
    assert "deleted in phase Active" in told["on-left"]
    assert "on-retired" in told["retired"]
    for asset in ("left", "retired"):
        pilot.stack.restart_agent(pilot.namespace, asset)
        _wait_for_release(pilot, asset)
        assert pilot.powers_written(asset) == [5000, 0]
    assert pilot.wait_for_phase("on-retired", "Cancelled")["reason"] == "AssetOutOfService"


def _unknown(pilot: Pilot) -> dict[str, str]:
    """Return what Events say is not known, by the name of what they are about."""
    answer = pilot.stack.kubectl("get", "events.events.k8s.io", "-n", pilot.namespace, "-o", "json")
    return {
        event["regarding"]["name"]: event["note"]
        for event in json.loads(answer)["items"]
        if event["reason"] == "RevertUnknown"
    }


def _wait_for_release(pilot: Pilot, asset: str = "battery") -> list[int]:
    return eventually(
        lambda: powers if (powers := pilot.powers_written(asset))[-1] == 0 else None, "the release"
    )


def _wait_until(timestamp: float) -> None:
    import time

    time.sleep(max(0.0, timestamp - time.time()))
