"""The whole product in front of Modbus devices: what status says is what the registers held."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from tests.e2e.acting import Pilot, conditions, parse
from tests.e2e.modbus import Bus, controlled, profiled_bus, sunspec_bus
from tests.waiting import eventually


@pytest.mark.parametrize("bus", [sunspec_bus, profiled_bus])
def test_a_dispatch_reaches_the_registers_and_leaves_them(
    pilot: Pilot, bus: Callable[[], Bus]
) -> None:
    with controlled(pilot, bus()) as opened:
        pilot.dispatch("peak")
        status = pilot.wait_for_phase("peak", "Complete")
        device = opened.look()

        assert device.powers == [0, 5000, 0]
        assert opened.told_truly(status, 5000)
        assert status["execution"]["evidence"] == "ReadBack"
        assert status["reversion"]["guard"] == "DeviceTimer"


@pytest.mark.parametrize("bus", [sunspec_bus, profiled_bus])
def test_a_device_that_says_yes_and_does_nothing_was_never_applied(
    pilot: Pilot, bus: Callable[[], Bus]
) -> None:
    with controlled(pilot, bus()) as opened:
        opened.device.unit.ignores_values = True
        pilot.dispatch("ignored", durationSeconds=30, startDeadlineSeconds=10)
        status = pilot.wait_for_phase("ignored", "Failed")

        assert status["reason"] == "ReadBackMismatch"
        assert conditions(status)["Applied"] == "False"
        assert opened.look().powers == [0]


def test_a_device_that_is_silent_in_mid_window_is_told_as_long_as_it_was_seen(
    pilot: Pilot,
) -> None:
    with controlled(pilot, sunspec_bus()) as opened:
        pilot.dispatch("silent", durationSeconds=12)
        pilot.wait_for_phase("silent", "Active")
        opened.disconnect()
        _wait_past_the_end(pilot, "silent")
        still = pilot.status("silent")
        opened.connect()
        status = pilot.wait_for_phase("silent", "Complete", "Failed")
        device = opened.look()

        assert still["phase"] == "Active", "it had not been reverted"
        assert conditions(status)["Reverted"] == "True"
        assert device.powers == [0, 5000, 0]
        assert opened.told_truly(status, 5000, 1.5)


def test_a_deleted_dispatch_has_left_the_registers(pilot: Pilot) -> None:
    with controlled(pilot, profiled_bus()) as opened:
        pilot.dispatch("deleted", durationSeconds=300)
        pilot.wait_for_phase("deleted", "Active")
        pilot.stack.kubectl("delete", "dispatch", "deleted", "-n", pilot.namespace, "--timeout=90s")

        assert opened.look().powers == [0, 5000, 0]


def test_an_agent_that_died_in_mid_window_finds_the_value_and_ends_it(pilot: Pilot) -> None:
    with controlled(pilot, sunspec_bus()) as opened:
        pilot.dispatch("resumed", durationSeconds=15)
        pilot.wait_for_phase("resumed", "Active")
        pilot.stack.kill_agent(pilot.namespace, "battery")
        pilot.stack.restart_agent(pilot.namespace, "battery")
        status = pilot.wait_for_phase("resumed", "Complete")
        device = opened.look()

        assert status["execution"]["interruptions"] == 1
        assert device.powers == [0, 5000, 0]
        assert opened.told_truly(status, 5000)


def test_two_dispatches_hand_the_registers_over(pilot: Pilot) -> None:
    with controlled(pilot, profiled_bus()) as opened:
        pilot.dispatch("market", durationSeconds=300)
        pilot.wait_for_phase("market", "Active")
        pilot.dispatch(
            "grid",
            primacy=10,
            setpoint={"mode": "ActivePower", "activePowerWatts": -2000},
            durationSeconds=4,
        )
        lost = pilot.wait_for_phase("market", "Superseded")
        won = pilot.wait_for_phase("grid", "Complete")
        device = opened.look()

        assert device.powers == [0, 5000, -2000, 0]
        assert opened.told_truly(lost, 5000)
        assert opened.told_truly(won, -2000)


def _wait_past_the_end(pilot: Pilot, name: str) -> None:
    end = parse(pilot.status(name)["timeline"]["plannedEnd"])
    eventually(lambda: datetime.now(UTC) > end, f"the end of {name}")


def test_status_tells_what_was_asked_for_and_what_the_registers_hold_of_it(pilot: Pilot) -> None:
    with controlled(pilot, profiled_bus()) as opened:
        power = {"mode": "ActivePower", "activePowerWatts": 5009}
        pilot.dispatch("rounded", setpoint=power)
        status = pilot.wait_for_phase("rounded", "Complete", "Failed")
        device = opened.look()

        assert status["phase"] == "Complete"
        assert device.powers == [0, 5000, 0]
        assert status["execution"]["requested"]["watts"] == 5009
        assert status["execution"]["applied"]["watts"] == 5000
        assert "steps of 10 W" in status["execution"]["rounding"]

        pilot.dispatch("nothing", setpoint={"mode": "ActivePower", "activePowerWatts": 9})
        status = pilot.wait_for_phase("nothing", "Rejected")
        assert status["reason"] == "NotRepresentable"
