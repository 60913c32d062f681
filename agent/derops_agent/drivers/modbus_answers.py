"""What the exceptions of Modbus devices mean, and what else fails on the line."""

from pymodbus.pdu import ModbusPDU

from derops.errors import DeviceRefusedError, DeviceTimeoutError

_EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "server device failure",
    5: "acknowledge",
    6: "server device busy",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target device failed to respond",
}
_ACKNOWLEDGE, _BUSY = 5, 6

_FINAL = frozenset({1, 2, 3})  # others may pass, or leave open whether the device acted
_OF_REGISTERS = frozenset({4, 8})  # about the registers, not the unit as a whole
_OF_THE_GATEWAY = frozenset({10, 11})  # the unit itself said nothing


class AnsweredError(DeviceTimeoutError):
    """The unit is there, and failed at this request alone."""


class BusyError(DeviceTimeoutError):
    """The unit is there and did nothing; ask it again."""


class AcknowledgedError(DeviceTimeoutError):
    """The unit took the request, and needs longer for it."""


class NotAskedError(DeviceTimeoutError):
    """Nothing was sent: there is no connection, or the unit is backed off."""


_KINDS: dict[int, type[DeviceTimeoutError]] = {
    _ACKNOWLEDGE: AcknowledgedError,
    _BUSY: BusyError,
    **dict.fromkeys(_OF_REGISTERS, AnsweredError),
}


def check_answer(answer: ModbusPDU, what: str) -> None:
    """Raise what an exception of the device means.

    Args:
        answer: What came.
        what: What was asked of whom, in words.

    Raises:
        DeviceRefusedError: The device will not, now and later.
        DeviceTimeoutError: The exception may pass, or does not say whether the device acted.
    """
    if not answer.isError():
        return
    code = answer.exception_code
    name = _EXCEPTIONS.get(code, "unknown")
    text = f"{what}: the device answered exception {code} ({name})"
    if code in _FINAL:
        raise DeviceRefusedError(text)
    failed = _KINDS.get(code, DeviceTimeoutError)(text)
    failed.answered = code not in _OF_THE_GATEWAY
    raise failed


def is_of_the_gateway(answer: ModbusPDU) -> bool:
    """Tell whether the gateway answered, and the unit behind it said nothing."""
    return answer.isError() and answer.exception_code in _OF_THE_GATEWAY
