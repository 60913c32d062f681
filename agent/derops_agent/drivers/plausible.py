"""Values that no device measures, so that its register must be wrong or misread.

Only the impossible is refused: the unlikely may be true, and then people want to see it.
"""

from collections.abc import Mapping
from typing import TypeAlias

from derops.wire.v1 import agent_pb2

Q: TypeAlias = agent_pb2.Quantity

_BEYOND: Mapping[int, tuple[str, float, str]] = {
    Q.ACTIVE_POWER_WATTS: ("power", 2, "W"),
    # A rating may be set far below what the hardware is made for.
    Q.REACTIVE_POWER_VARS: ("reactive power", 10, "var"),
    Q.AVAILABLE_POWER_WATTS: ("available power", 10, "W"),
}
"""How many times its rating no device exceeds, by quantity."""

_RANGES: Mapping[int, tuple[str, float, float, str]] = {
    Q.STATE_OF_CHARGE_PERCENT: ("state of charge", 0, 100, "%"),
    # Grids up to the highest transmission voltage, and 400 Hz ones that run away.
    Q.VOLTAGE_VOLTS: ("voltage", 0, 1e6, "V"),
    Q.FREQUENCY_HERTZ: ("frequency", 0, 500, "Hz"),
    # From absolute zero to what melts the device.
    Q.TEMPERATURE_CELSIUS: ("temperature", -273.15, 1000, "°C"),
    # More than the largest plants yield in their life.
    Q.ENERGY_INJECTED_WATT_HOURS: ("injected energy", 0, 1e15, "Wh"),
    Q.ENERGY_ABSORBED_WATT_HOURS: ("absorbed energy", 0, 1e15, "Wh"),
}


def what_cannot_be(quantity: int, value: float, most_watts: float) -> str:
    """Return why a device cannot have measured ``value``; empty = it can.

    Args:
        quantity: Number of ``agent_pb2.Quantity``.
        value: In the unit of the quantity.
        most_watts: The larger rating of the device.
    """
    if quantity in _BEYOND:
        name, times, unit = _BEYOND[quantity]
        most = times * most_watts
        if abs(value) <= most:
            return ""
        return (
            f"the device says that its {name} is {value:g} {unit}; it is rated {most_watts:g} W, "
            f"and at most {most:g} {unit} can be"
        )
    found = _RANGES.get(quantity)
    if found is None:
        return ""
    name, least, most, unit = found
    if least <= value <= most:
        return ""
    return (
        f"the device says that its {name} is {value:g} {unit}; it can be {least:g} to "
        f"{most:g} {unit}"
    )
