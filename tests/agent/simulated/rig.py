"""One simulated device with a clock that is set by hand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from derops.wire.v1 import agent_pb2
from derops_agent.drivers.simulated import SimulatedDevice, open_device
from derops_agent.drivers.simulated.stepping import Meter, Physics, Plant, advance
from derops_agent.ports import Setpoints

T0 = 1_800_000_000_000_000  # 2027-01-15 08:00 UTC
T0_SECONDS = T0 / 1e6

BATTERY: dict[str, Any] = {
    "model": "battery",
    "maxInjectionWatts": 10_000,
    "maxAbsorptionWatts": 8_000,
    "energyCapacityWattHours": 20_000,
}
SOLAR: dict[str, Any] = {"model": "solar", "maxInjectionWatts": 5_000}
CHARGER: dict[str, Any] = {"model": "evCharger", "maxAbsorptionWatts": 11_000}
GENERATOR: dict[str, Any] = {"model": "generator", "maxInjectionWatts": 50_000}
LOAD: dict[str, Any] = {"model": "load", "maxAbsorptionWatts": 5_000}
ALL = [BATTERY, SOLAR, CHARGER, GENERATOR, LOAD]
ACTIVE = {"battery": Setpoints(active_power_watts=5_000)}

POWER = agent_pb2.ACTIVE_POWER_WATTS
CHARGE = agent_pb2.STATE_OF_CHARGE_PERCENT


class Rig:
    """The device's folder and clock; ``restart`` is what kill -9 of the agent leaves."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.state_file = folder / "device.json"
        self.account = folder / "device.writes.jsonl"
        self.options, self.now_us = options, T0
        self.device = self.open()

    def open(self) -> SimulatedDevice:
        return open_device(self.options, self.state_file, lambda: self.now_us)

    def restart(self, **changes: Any) -> None:
        self.options = {**self.options, **changes}
        self.device = self.open()

    def pass_seconds(self, seconds: float) -> None:
        self.now_us += round(seconds * 1e6)

    async def values(self, after_seconds: float = 0) -> dict[int, float]:
        self.pass_seconds(after_seconds)
        return (await self.device.sample()).values

    async def power(self, after_seconds: float = 0) -> float:
        return (await self.values(after_seconds))[POWER]

    def told(self) -> list[int | None]:
        """Return the active powers in the device's own account."""
        return [entry["active_power_watts"] for entry in self.entries()]

    def entries(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.account.read_text().splitlines()]


def run(
    model: Physics[Any],
    orders: Setpoints,
    seconds: float,
    *,
    plant: Plant[Any] | None = None,
    at_seconds: float = T0_SECONDS,
    every_seconds: float | None = None,
    see: Callable[[float, Plant[Any]], None] = lambda at, plant: None,
) -> Plant[Any]:
    """Advance a model, in one go or looking at it every so often."""
    plant = plant or Plant(state=model.begin(), meter=Meter())
    every = every_seconds or seconds
    for number in range(round(seconds / every)):
        begin = at_seconds + number * every
        plant = advance(
            model,
            plant,
            orders,
            from_seconds=begin,
            to_seconds=begin + every,
            rated_watts=10_000,
        )
        see(begin + every, plant)
    return plant


def powers(
    model: Physics[Any], orders: Setpoints, seconds: float, *, every_seconds: float = 1, **more: Any
) -> list[float]:
    """Return the power at the end of each stretch."""
    seen: list[float] = []
    run(
        model,
        orders,
        seconds,
        every_seconds=every_seconds,
        see=lambda at, plant: seen.append(plant.meter.power_watts),
        **more,
    )
    return seen
