"""One value in registers: how its bytes become watts, volts or percent, and back."""

import math
import struct
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from derops.errors import DeviceRefusedError
from derops_agent.drivers.modbus_tcp import Table
from derops_agent.ports import whole_steps

_FORMATS = {
    "int16": "h",
    "uint16": "H",
    "int32": "i",
    "uint32": "I",
    "int64": "q",
    "uint64": "Q",
    "float32": "f",
    "float64": "d",
}
LAST_REGISTER = 65535


class ProfileSection(BaseModel):
    """A part of a profile."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=False,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Register(ProfileSection):
    """One register."""

    address: int = Field(ge=0, le=LAST_REGISTER)
    """Of the first register, as in the request: 0 is the register that is called 40001 or 30001."""

    @property
    def registers(self) -> int:
        """How many there are."""
        return 1


class Point(Register):
    """A number in one to four registers."""

    type: Literal["int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]
    word_order: Literal["big", "little"] = "big"
    """Whether the first register has the highest or the lowest part of the number."""

    byte_order: Literal["big", "little"] = "big"
    """Order of the two bytes of a register; big is what Modbus says."""

    scale: float = Field(default=1, gt=0)
    """Units of one step: with 10 a register of 5 is 50."""

    sign: Literal[1, -1] = 1
    """-1 if the device counts the other way than derops, where injection is positive."""

    @property
    def registers(self) -> int:
        """How many registers the value takes: 1, 2 or 4."""
        return struct.calcsize(_FORMATS[self.type]) // 2

    @model_validator(mode="after")
    def _ends_in_range(self) -> Self:
        if self.address + self.registers > LAST_REGISTER + 1:
            raise ValueError(
                f"{self.type} at {self.address} takes {self.registers} registers and ends beyond "
                f"register {LAST_REGISTER}"
            )
        return self

    def decode(self, data: bytes) -> float:
        """Return the value of ``registers`` registers, two bytes each, in the point's unit.

        Raises:
            DeviceRefusedError: They hold what is no number.
        """
        raw = struct.unpack(">" + _FORMATS[self.type], self._ordered(data))[0]
        value = float(raw * self.scale * self.sign)
        if not math.isfinite(value):
            raise DeviceRefusedError(f"register {self.address} holds 0x{data.hex()}, no number")
        return value

    def encode(self, value: float) -> bytes:
        """Return the registers for a value; integers are rounded towards zero, so no limit grows.

        Raises:
            DeviceRefusedError: The register cannot hold the value.
        """
        raw = value * self.sign / self.scale
        number = whole_steps(raw) if self.is_whole else raw
        try:
            data = struct.pack(">" + _FORMATS[self.type], number)
        except (struct.error, OverflowError) as error:
            raise DeviceRefusedError(
                f"register {self.address}: {value:g} is {raw:g} steps, "
                f"which {self.type} cannot hold"
            ) from error
        return self._ordered(data)

    @property
    def is_whole(self) -> bool:
        """Whether it holds whole steps of its scale."""
        return not self.type.startswith("float")

    @property
    def limits(self) -> tuple[float, float]:
        """The least and the most that it can hold, in its unit; both infinite for a float."""
        if not self.is_whole:
            return -math.inf, math.inf
        bits = 16 * self.registers
        raw = (
            (0, 2**bits - 1)
            if self.type.startswith("u")
            else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        low, high = sorted(each * self.scale * self.sign for each in raw)
        return low, high

    @property
    def most(self) -> float:
        """The largest value that an unsigned point can hold."""
        return float(2 ** (16 * self.registers) - 1) * self.scale

    def _ordered(self, data: bytes) -> bytes:
        words = [data[at : at + 2] for at in range(0, len(data), 2)]
        if self.word_order == "little":
            words.reverse()
        return b"".join(word[::-1] if self.byte_order == "little" else word for word in words)


class MeasuredPoint(Point):
    """A number that is only read."""

    table: Table = "holding"
    """Holding registers are read by function 3, input registers by function 4."""

    absent: int | None = Field(default=None, ge=0, lt=2**64)
    """What the registers hold where the device does not measure this, read as an unsigned number
    in the point's order, for example 0x8000."""

    def measure(self, data: bytes) -> float | None:
        """Return the value; None where the device does not measure it.

        Raises:
            DeviceRefusedError: The registers hold what is no number.
        """
        if self.absent is not None and int.from_bytes(self._ordered(data)) == self.absent:
            return None
        return self.decode(data)
