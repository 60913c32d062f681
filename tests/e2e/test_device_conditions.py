"""The whole product in front of ill devices: the DERAsset says so, and the rest goes on."""

import json
from typing import Any

from tests.e2e.acting import Pilot, conditions, eventually
from tests.e2e.modbus import controlled, profiled_bus


def test_a_device_that_falls_silent_is_told_on_its_asset_until_it_answers(pilot: Pilot) -> None:
    pilot.battery("neighbour")
    with controlled(pilot, profiled_bus()) as opened:
        opened.disconnect()
        pilot.wait_for_condition("derasset", "battery", "DeviceSilent", "True")
        silent = condition(pilot, "DeviceSilent")
        assert silent["reason"] == "NoAnswer"
        assert "has not answered its agent since 20" in silent["message"]
        health = conditions(pilot.get("derasset", "battery")["status"])
        assert [health[kind] for kind in ("Ready", "Connected", "Stalled")] == [
            "True", "True", "False",
        ]  # fmt: skip
        neighbour = conditions(pilot.get("derasset", "neighbour")["status"])
        assert "DeviceSilent" not in neighbour

        opened.connect()
        pilot.wait_for_condition("derasset", "battery", "DeviceSilent", "False")
        eventually(lambda: events(pilot, "battery") >= {"NoAnswer", "Answers"}, "both Events")


def condition(pilot: Pilot, kind: str, name: str = "battery") -> dict[str, Any]:
    held = pilot.get("derasset", name)["status"]["conditions"]
    found: dict[str, Any] = next(each for each in held if each["type"] == kind)
    return found


def events(pilot: Pilot, name: str) -> set[str]:
    """Return the reasons of all Events about an object."""
    answer = pilot.stack.kubectl("get", "events.events.k8s.io", "-n", pilot.namespace, "-o", "json")
    items = json.loads(answer)["items"]
    return {each["reason"] for each in items if each["regarding"]["name"] == name}
