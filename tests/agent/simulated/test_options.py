"""Options: what is wrong is named, with what is allowed."""

from pathlib import Path
from typing import Any

import pytest
from tests.agent.simulated.rig import ALL, BATTERY, CHARGER, LOAD, SOLAR
from tests.stack.simulation import driver

from derops.errors import SettingError
from derops_agent.drivers.simulated.options import MODELS, parse_options
from derops_agent.settings import load


@pytest.mark.parametrize("options", ALL, ids=lambda options: options["model"])
def test_ratings_are_enough(options: dict[str, Any]) -> None:
    assert parse_options(options).build() is not None


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.type)
def test_what_the_stack_writes_for_a_type_is_good(model: type[Any]) -> None:
    ratings = {
        "maxInjectionWatts": 5_000,
        "maxAbsorptionWatts": 7_000,
        "energyCapacityWattHours": 10_000,
    }
    options = driver({"metadata": {}, "spec": {"type": model.type, "ratings": ratings}})

    assert options.pop("kind") == "simulated"
    assert isinstance(parse_options(options), model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, ["model", "required", "battery, solar, evCharger, generator, load"]),
        ({"model": "windmill"}, ["model", "'windmill'", "allowed: battery, solar"]),
        ({"model": ["battery"]}, ["model", "allowed: battery"]),
        (
            {**BATTERY, "sped": 3},
            ["sped", "simulated device, battery", "not an option", "reservePercent", "speed"],
        ),
        ({**SOLAR, "energyCapacityWattHours": 3}, ["energyCapacityWattHours", "cloudiness"]),
        ({"model": "battery", "maxInjectionWatts": 1}, ["energyCapacityWattHours", "required"]),
        ({"model": "battery", "energyCapacityWattHours": 1}, ["maxInjectionWatts or", "above 0"]),
        ({"model": "solar", "maxAbsorptionWatts": 5}, ["maxInjectionWatts must be above 0"]),
        ({**BATTERY, "speed": 0.5}, ["speed", "1", "0.5"]),
        ({**BATTERY, "speed": float("inf")}, ["speed"]),
        ({**BATTERY, "initialStateOfChargePercent": 101}, ["initialStateOfChargePercent", "100"]),
        ({**BATTERY, "max_injection_watts": 7}, ["max_injection_watts", "maxInjectionWatts"]),
        ({**CHARGER, "maxAbsorptionWatts": 1_000}, ["maxAbsorptionWatts", "1380", "1000"]),
        ({**SOLAR, "sunriseHour": 21}, ["sunriseHour must be before sunsetHour"]),
        (
            {**LOAD, "faults": {"writeTimeout": {"nextWrite": 1}}},
            ["faults.writeTimeout.nextWrite", "allowed: acts, nextWrites, probability"],
        ),
        ({**LOAD, "faults": {"offlineFrom": "2027-01-01T00:00:00"}}, ["offlineFrom", "timezone"]),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(SettingError) as raised:
        parse_options(options)

    message = str(raised.value)
    assert isinstance(raised.value, ValueError)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_options_come_through_the_agents_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(
        """
        gateways: ["gateway:8443"]
        serverCAFile: ca.crt
        dataDirectory: data
        assets:
          - namespace: ns
            name: battery
            certificateDirectory: certs
            driver:
              kind: simulated
              model: battery
              maxInjectionWatts: 10000
              maxAbsorptionWatts: 8000
              energyCapacityWattHours: 20000
              faults: {offlineFrom: 2027-01-01T00:00:00Z, writeTimeout: {nextWrites: 3}}
        """
    )
    options = load(file, {}).assets[0].driver.options()
    options.pop("kind")

    parsed = parse_options(options)

    assert parsed.max_absorption_watts == 8_000
    assert parsed.faults.write_timeout.next_writes == 3
    assert parsed.faults.offline_at(1_900_000_000_000_000)
