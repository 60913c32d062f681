"""Whether what is about to be written is what was asked for, but for the step of the device."""

from derops.errors import DeviceRefusedError
from derops_agent.ports import Resolution, in_words

_UNTOLD_WATTS = 1.0
"""Of a register without steps: whatever is less than the whole watts that are told."""

_LAST_DIGIT = 2.0**-23
"""Of a float of 32 bits, as a share of it."""


def refuse_lost_value(
    name: str, asked_watts: float, encoded_watts: float, resolution: Resolution
) -> None:
    """Check what registers will say against what was asked for.

    A scale factor that is not as it was, or a register that is not as described, would make of a
    value another one, which reads back as it was written.

    Args:
        name: What the value is of.
        asked_watts: As it was asked for; of a limit, at most what the device can be told.
        encoded_watts: What the bytes to write mean.
        resolution: That the device was opened with.

    Raises:
        DeviceRefusedError: They differ by a step or more.
    """
    allowed_watts = resolution.step_watts or _UNTOLD_WATTS
    allowed_watts += abs(asked_watts) * _LAST_DIGIT
    if abs(asked_watts - encoded_watts) < allowed_watts:
        return
    raise DeviceRefusedError(
        f"{name}: {in_words(asked_watts)} W would be written as {in_words(encoded_watts)} W, "
        f"which must be less than {in_words(allowed_watts)} W beside it; nothing was written"
    )
