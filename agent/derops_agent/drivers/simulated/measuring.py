"""What a simulated device measures. Pure: its memory in, numbers out."""

from typing import Any

from pydantic.alias_generators import to_camel

from derops.wire.v1 import agent_pb2
from derops_agent.drivers.simulated.memory import DeviceMemory
from derops_agent.drivers.simulated.noise import smooth
from derops_agent.drivers.simulated.options import Options
from derops_agent.drivers.simulated.stepping import Physics
from derops_agent.ports import BadPoint

_QUANTITIES = {to_camel(name.lower()): number for name, number in agent_pb2.Quantity.items()}
_NOMINAL_VOLTS, _NOMINAL_HERTZ = 230.0, 50.0
_VOLTAGE_SEED, _FREQUENCY_SEED, _METER_SEED = 101, 102, 103


def measure(memory: DeviceMemory, model: Physics[Any], options: Options) -> dict[int, float]:
    """Return what the device's meters show, by quantity."""
    seed = options.seed
    at, meter = memory.simulated_us / 1e6, memory.plant.meter
    share = meter.power_watts / options.rated_watts
    error = 1 + 0.002 * smooth(seed + _METER_SEED, at, 3)
    volts = _NOMINAL_VOLTS + 2 * share + smooth(seed + _VOLTAGE_SEED, at, 20)
    values: dict[int, float | None] = {
        agent_pb2.ACTIVE_POWER_WATTS: meter.power_watts * error,
        agent_pb2.REACTIVE_POWER_VARS: 0.0,
        agent_pb2.VOLTAGE_VOLTS: volts,
        # One grid: all devices see the same frequency.
        agent_pb2.FREQUENCY_HERTZ: _NOMINAL_HERTZ + 0.03 * smooth(_FREQUENCY_SEED, at, 15),
        agent_pb2.STATE_OF_CHARGE_PERCENT: model.state_of_charge_percent(memory.plant.state),
        agent_pb2.ENERGY_INJECTED_WATT_HOURS: meter.injected_watt_hours,
        agent_pb2.ENERGY_ABSORBED_WATT_HOURS: meter.absorbed_watt_hours,
        agent_pb2.TEMPERATURE_CELSIUS: meter.temperature_celsius,
        agent_pb2.SETPOINT_WATTS: memory.setpoints.active_power_watts,
        agent_pb2.MAX_GENERATION_WATTS: memory.setpoints.max_generation_watts,
        agent_pb2.MAX_LOAD_WATTS: memory.setpoints.max_load_watts,
        agent_pb2.AVAILABLE_POWER_WATTS: model.available_watts(memory.plant.state, at),
    }
    return {quantity: float(value) for quantity, value in values.items() if value is not None}


def bad_point(name: str) -> BadPoint:
    """Return what the fault ``badPoints`` makes of a point."""
    return BadPoint(
        name=name,
        raw="0x7fc00000",
        problem="no number (fault badPoints)",
        quantity=_QUANTITIES.get(name, 0),
    )
