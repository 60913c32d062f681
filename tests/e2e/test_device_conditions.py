"""The whole product in front of ill devices: the DERAsset says so, and the rest goes on."""

import json
import re
from pathlib import Path
from typing import Any

from tests.e2e.acting import Pilot, battery_manifest, conditions
from tests.e2e.modbus import PROFILE, controlled, profiled_bus
from tests.stack.simulation import DRIVER_ANNOTATION
from tests.waiting import eventually

CHARGE = 2
"""The register of the state of charge, in tenths of a percent."""


def test_a_device_that_falls_silent_is_told_on_its_asset_until_it_answers(pilot: Pilot) -> None:
    pilot.battery("neighbour")
    with controlled(pilot, profiled_bus()) as opened:
        opened.disconnect()
        pilot.wait_for_condition("derasset", "battery", "DeviceSilent", "True")
        silent = condition(pilot, "DeviceSilent")
        assert silent["reason"] == "NoAnswer"
        assert "has given no sample since 20" in silent["message"]
        health = conditions(pilot.get("derasset", "battery")["status"])
        assert [health[kind] for kind in ("Ready", "Connected", "Stalled")] == [
            "True", "True", "False",
        ]  # fmt: skip
        neighbour = conditions(pilot.get("derasset", "neighbour")["status"])
        assert "DeviceSilent" not in neighbour

        opened.connect()
        pilot.wait_for_condition("derasset", "battery", "DeviceSilent", "False")
        eventually(lambda: events(pilot, "battery") >= {"NoAnswer", "Answers"}, "both Events")


def test_a_bad_point_is_named_and_everything_else_goes_on(pilot: Pilot) -> None:
    with controlled(pilot, profiled_bus()) as opened:
        registers = opened.device.unit.input  # type: ignore[attr-defined]
        good = registers[CHARGE]
        registers[CHARGE] = 1010
        pilot.wait_for_condition("derasset", "battery", "TelemetryDegraded", "True")
        told = condition(pilot, "TelemetryDegraded")
        assert told["reason"] == "BadPoints"
        for words in ("stateOfChargePercent", "101 %", "raw value 0x03f2", "since 20"):
            assert words in told["message"]

        pilot.dispatch("peak")
        status = pilot.wait_for_phase("peak", "Complete")
        powers, charges = eventually(
            lambda: measured(pilot, status["timeline"]["appliedAt"]), "telemetry of the window"
        )
        assert powers >= 3
        assert charges == 0, "nonsense is not stored"
        asset = conditions(pilot.get("derasset", "battery")["status"])
        assert (asset["Ready"], asset["TelemetryDegraded"]) == ("True", "True")

        registers[CHARGE] = good
        pilot.wait_for_condition("derasset", "battery", "TelemetryDegraded", "False")


def measured(pilot: Pilot, since: str) -> tuple[int, int] | None:
    """Return how many powers and charges of the battery are stored; None while it is few."""
    ((powers, charges),) = pilot.rows(
        "select count(active_power_watts), count(state_of_charge_percent) from telemetry "
        "join asset using (asset_id) where uid::text = %s and ts > %s::timestamptz",
        pilot.get("derasset", "battery")["metadata"]["uid"],
        since,
    )
    return (powers, charges) if powers >= 3 else None


def test_a_fallback_that_the_device_cannot_hold_is_told_before_any_dispatch(pilot: Pilot) -> None:
    # The register counts in steps of 10 W.
    with controlled(pilot, profiled_bus(), fallback={"activePowerWatts": 5}):
        pilot.wait_for_condition("derasset", "battery", "FallbackNotHeld", "True")
        told = condition(pilot, "FallbackNotHeld")
        assert told["reason"] == "NotRepresentable"
        assert "5 W" in told["message"]
        assert "10 W" in told["message"]

        pilot.stack.kubectl(
            "patch", "derasset", "battery", "-n", pilot.namespace, "--type=merge",
            "-p", '{"spec":{"fallback":{"activePowerWatts":0}}}',
        )  # fmt: skip
        pilot.wait_for_condition("derasset", "battery", "FallbackNotHeld", "False")


def test_a_unit_that_is_dead_from_the_start_is_told_on_its_own_asset_alone(
    pilot: Pilot, tmp_path: Path
) -> None:
    profile = tmp_path / "stated.yaml"
    text = PROFILE.read_text(encoding="utf-8")
    stated = re.sub(r"(Watts: )\{read: \{address: 10[01].*?\}\}", r"\1{watts: 10000}", text)
    assert stated.count("{watts: 10000}") == 2
    profile.write_text(stated, encoding="utf-8")
    bus = profiled_bus()  # of unit 2 it says as a gateway does that it did not respond
    with controlled(pilot, bus):
        dead = battery_manifest("dead")
        driver = {**bus.driver, "unitId": 2, "profile": str(profile)}
        dead["metadata"]["annotations"][DRIVER_ANNOTATION] = json.dumps(driver)
        pilot.apply(dead)
        pilot.wait_for_condition("derasset", "dead", "Connected", "True")
        pilot.wait_for_condition("derasset", "dead", "DeviceSilent", "True")
        assert "exception 11" in condition(pilot, "DeviceSilent", "dead")["message"]
        pilot.dispatch("peak")
        pilot.wait_for_phase("peak", "Complete")

        neighbour = conditions(pilot.get("derasset", "battery")["status"])
        assert "DeviceSilent" not in neighbour


def condition(pilot: Pilot, kind: str, name: str = "battery") -> dict[str, Any]:
    held = pilot.get("derasset", name)["status"]["conditions"]
    found: dict[str, Any] = next(each for each in held if each["type"] == kind)
    return found


def events(pilot: Pilot, name: str) -> set[str]:
    """Return the reasons of all Events about an object."""
    answer = pilot.stack.kubectl("get", "events.events.k8s.io", "-n", pilot.namespace, "-o", "json")
    items = json.loads(answer)["items"]
    return {each["reason"] for each in items if each["regarding"]["name"] == name}
