"""What no device measures, so that its register must be wrong or misread."""

from collections.abc import Mapping

from derops.errors import DeviceRefusedError
from derops.wire.v1 import agent_pb2

_BEYOND = 2.0  # times the rating: no device delivers that


def refuse_nonsense(values: Mapping[int, float], most_watts: float) -> None:
    """Check a sample, keyed by quantity, against the rating.

    Raises:
        DeviceRefusedError: A value cannot be; the message has it.
    """
    power = values.get(int(agent_pb2.ACTIVE_POWER_WATTS))
    if power is not None and abs(power) > _BEYOND * most_watts:
        raise DeviceRefusedError(
            f"the device says that its power is {power:g} W; it is rated {most_watts:g} W"
        )
    charge = values.get(int(agent_pb2.STATE_OF_CHARGE_PERCENT))
    if charge is not None and not 0 <= charge <= 100:
        raise DeviceRefusedError(f"the device says that its state of charge is {charge:g} %")
