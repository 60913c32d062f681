"""Registers of a device as they were read, and which requests it takes to read them."""

from collections.abc import Iterable

from derops_agent.drivers.modbus.points import Register
from derops_agent.drivers.modbus_tcp import MOST_REGISTERS, Table, Unit


def table_of(register: Register) -> Table:
    """Return where a register lies; what is written is a holding register."""
    table: Table = getattr(register, "table", "holding")
    return table


def runs(registers: Iterable[Register]) -> list[tuple[Table, int, int]]:
    """Return table, first register and count of the fewest requests.

    Only what touches goes into one request: devices refuse to read what they do not have, be it in
    between. No value is split over two requests, since it may change in the meantime.
    """
    found: list[tuple[Table, int, int]] = []
    for table, start, count in sorted(
        {(table_of(each), each.address, each.registers) for each in registers}
    ):
        if found:
            last_table, first, length = found[-1]
            together = max(length, start + count - first)
            if last_table == table and start <= first + length and together <= MOST_REGISTERS:
                found[-1] = (table, first, together)
                continue
        found.append((table, start, count))
    return found


class Image:
    """What some registers held."""

    def __init__(self, parts: dict[tuple[Table, int], bytes]) -> None:
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


async def read_image(unit: Unit, registers: Iterable[Register]) -> Image:
    """Read registers, all that are needed for one look.

    Raises:
        DeviceError: One could not be read.
    """
    return Image(
        {
            (table, start): await unit.read(start, count, table)
            for table, start, count in runs(registers)
        }
    )
