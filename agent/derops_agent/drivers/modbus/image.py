"""Registers of a device as they were read."""

from collections.abc import Iterable

from derops_agent.drivers.modbus.points import Register
from derops_agent.drivers.modbus_tcp import Table, Unit
from derops_agent.drivers.reading import RegisterSpan, Whole, Words, join


def table_of(register: Register) -> Table:
    """Return where a register lies; what is written is a holding register."""
    table: Table = getattr(register, "table", "holding")
    return table


def span_of(register: Register) -> RegisterSpan:
    """Return which registers hold a point."""
    return RegisterSpan(table_of(register), register.address, register.registers)


class Image:
    """What some registers held."""

    def __init__(self, parts: Words) -> None:
        self._words = {
            (table, start + at // 2): data[at : at + 2]
            for (table, start), data in parts.items()
            for at in range(0, len(data), 2)
        }

    def data(self, register: Register) -> bytes:
        """Return what a register held, two bytes for each that it spans."""
        return b"".join(
            self._words[table_of(register), register.address + at]
            for at in range(register.registers)
        )

    def word(self, register: Register) -> int:
        """Return it as an unsigned number."""
        return int.from_bytes(self.data(register))


def whole_of(unit: Unit, registers: Iterable[Register]) -> Whole:
    """Return a reader of all registers that are needed at once."""
    return Whole(unit, join(map(span_of, registers)))


async def read_image(unit: Unit, registers: Iterable[Register]) -> Image:
    """Read registers once.

    Raises:
        DeviceError: One could not be read.
    """
    return Image(await whole_of(unit, registers).read())
