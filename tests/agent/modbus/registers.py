"""A device that is nothing but registers, with a timer that runs on a clock set by hand."""

import asyncio
from dataclasses import dataclass, field

from pymodbus.constants import ExcCodes
from tests.agent.lines import Answer

from derops_agent.drivers.modbus_tcp import Table


@dataclass
class Registers:
    """One unit. It has the registers that are named here and no others."""

    holding: dict[int, int]
    input: dict[int, int]
    timer: int
    """The register that, once it ran out, does what ``on_expiry`` says."""

    timer_step_seconds: int
    on_expiry: dict[int, int]
    """Registers, and the registers that they get their value from."""

    now_seconds: float = 0.0
    due_seconds: float | None = None
    written: list[tuple[int, list[int]]] = field(default_factory=list)
    ignores_values: bool = False
    instead: dict[int, ExcCodes | None] = field(default_factory=dict)
    """What a question that touches a register is answered with; None = it is not answered."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nobody waits for answers any more: what was not answered is let go."""

    asked: list[tuple[Table, int, int]] = field(default_factory=list)
    """Table, first register and count of every question."""
    rounds: dict[int, int] = field(default_factory=dict)
    """Registers, and to what it rounds them; down, as far as it may be."""

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer:
        self.live()
        words = self.holding if table == "holding" else self.input
        addresses = range(address, address + count)
        if values is None:
            self.asked.append((table, address, count))
        for each in addresses:
            if each in self.instead:
                answer = self.instead[each]
                if answer is None:
                    await self.over.wait()
                return answer or ExcCodes.GATEWAY_NO_RESPONSE
        if not all(each in words for each in addresses):
            return ExcCodes.ILLEGAL_ADDRESS
        if values is not None:
            self._take(address, values)
        return [words[each] for each in addresses]

    def live(self) -> None:
        if self.due_seconds is not None and self.now_seconds >= self.due_seconds:
            self.due_seconds = None
            self.holding |= {to: self.holding[of] for to, of in self.on_expiry.items()}

    def _take(self, address: int, values: list[int]) -> None:
        self.written.append((address, values))
        if self.ignores_values:
            return
        for at, value in enumerate(values, address):
            self.holding[at] = value - value % self.rounds.get(at, 1)
        if address == self.timer:
            seconds = values[0] * self.timer_step_seconds
            self.due_seconds = self.now_seconds + seconds if seconds else None


def battery() -> Registers:
    """Return a device that examples/profiles/battery.yaml describes: 10 kW out, 8 kW in."""
    return Registers(
        holding={
            100: 100,
            101: 80,
            200: 0,
            201: 0,
            202: 0,
            210: 1000,
            211: 0,
            220: 1,
            230: 0,
            240: 0,
        }
        | {299: 0},
        input={0: 1500, 1: 0, 2: 505, 3: 2301, 4: 5000, 5: 0x8000, 8: 0x40E0, 9: 0, 20: 0},
        timer=230,
        timer_step_seconds=1,
        on_expiry={200: 202, 211: 299},
    )


def charger() -> Registers:
    """Return a device that examples/profiles/ev-charger.yaml describes."""
    return Registers(
        holding={1000: 32, 1001: 0, 1002: 0},
        input={10: 0, 11: 11040, 12: 0, 13: 0, 14: 1, 15: 0},
        timer=1002,
        timer_step_seconds=10,
        on_expiry={1000: 1001},
    )
