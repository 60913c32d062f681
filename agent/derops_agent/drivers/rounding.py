"""Whether a value about to be written is the one that was asked for, to a step of the device."""

from derops.errors import DeviceRefusedError
from derops_agent.ports import Resolution, in_words

_UNTOLD_WATTS = 1.0
"""The step of a register without steps: values are told in whole watts."""

_LAST_DIGIT = 2.0**-23
"""The last digit of a float of 32 bits, as a share of its value."""


def refuse_lost_value(
    name: str, asked_watts: float, encoded_watts: float, resolution: Resolution
) -> None:
    """Refuse a value that the registers would turn into another one.

    A changed scale factor, or a register other than described, would do so, and the read-back would
    show what was written.

    Args:
        name: The point or control, in words.
        asked_watts: The value as it was asked for; a limit at most as the device can hold it.
        encoded_watts: What the bytes to write mean.
        resolution: The one that the device was opened with.

    Raises:
        DeviceRefusedError: They differ by a step or more.
    """
    allowed_watts = resolution.step_watts or _UNTOLD_WATTS
    allowed_watts += abs(asked_watts) * _LAST_DIGIT
    if abs(asked_watts - encoded_watts) < allowed_watts:
        return
    raise DeviceRefusedError(
        f"{name}: {in_words(asked_watts)} W would be written as {in_words(encoded_watts)} W, "
        f"and the two must differ by less than {in_words(allowed_watts)} W; nothing was written"
    )
