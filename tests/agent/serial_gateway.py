"""A Modbus TCP gateway with a serial line behind it, and the ways of those that people have."""

import asyncio
import struct
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from pymodbus.constants import ExcCodes
from tests.agent.lines import Answering
from tests.waiting import now

from derops_agent.drivers.modbus_tcp import Address, Table

_HEADER = struct.Struct(">HHHB")


class Request(NamedTuple):
    """What came, and when."""

    at_seconds: float
    unit_id: int
    is_write: bool


@dataclass
class SerialGateway:
    """One request at a time to the units, each connection on its own."""

    units: Mapping[int, Answering]
    silent: set[int] = field(default_factory=set)
    """Units that are switched off."""

    patience_seconds: float = 0.0
    """How long it waits itself for a silent unit, and does nothing else."""

    late_seconds: dict[int, float] = field(default_factory=dict)
    """How long an answer of a unit is under way; others come in between."""

    busy_seconds: dict[int, float] = field(default_factory=dict)
    """How long a unit takes for an answer; the line waits."""

    free_seconds: float = 0.0
    """How long its only socket takes to be free again; 0 = it has many. Until then it hangs up."""

    has_one_socket: bool = False
    number: Callable[[int], int] = lambda number: number
    """Which transaction id it answers with."""

    says_no_response: bool = False
    """For a silent unit it answers exception 11."""

    hangs_up_on: set[int] = field(default_factory=set)
    swallows: bool = False
    """It takes everything and answers nothing, as a link that is half open."""

    requests: list[Request] = field(default_factory=list)
    connections: int = 0
    refused: int = 0
    address: Address = field(default_factory=lambda: Address("127.0.0.1", 0))

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._freed = 0.0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen, after the first time on the same port."""
        self._server = await asyncio.start_server(self._serve, *self.address)
        self.address = Address("127.0.0.1", self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """End all connections and listen no more."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def asked(self, unit_id: int, since: float = 0.0) -> list[Request]:
        """Return what a unit was asked."""
        return [r for r in self.requests if r.unit_id == unit_id and r.at_seconds >= since]

    def before_a_write(self, unit_id: int, asked: int) -> list[int]:
        """Return who else was asked after ``asked`` requests and before a unit's write."""
        since = self.requests[asked:]
        at = next(at for at, each in enumerate(since) if each.unit_id == unit_id and each.is_write)
        return [each.unit_id for each in since[:at] if each.unit_id != unit_id]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = self.has_one_socket or self.free_seconds
        if one and (self._writers or now() < self._freed):
            self.refused += 1
            writer.close()
            return
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
                while True:
                    await self._one(reader, writer)
        finally:
            self._tasks.discard(task)
            self._writers.discard(writer)
            self._freed = now() + self.free_seconds
            writer.transport.abort()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number, _, length, unit_id = _HEADER.unpack(await reader.readexactly(_HEADER.size))
        message = await reader.readexactly(length - 1)
        self.requests.append(Request(now(), unit_id, message[0] == 16))
        if self.swallows:
            return
        if unit_id in self.hangs_up_on:
            raise ConnectionError
        if unit_id in self.silent and not self.says_no_response:
            await asyncio.sleep(self.patience_seconds)
            return
        await asyncio.sleep(self.busy_seconds.get(unit_id, 0.0))
        answer = await self._answer(unit_id, message)
        header = _HEADER.pack(self.number(number), 0, len(answer) + 1, unit_id)
        task = asyncio.create_task(
            self._send(writer, header + answer, self.late_seconds.get(unit_id, 0.0))
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(self, writer: asyncio.StreamWriter, message: bytes, seconds: float) -> None:
        await asyncio.sleep(seconds)
        if not writer.is_closing():
            writer.write(message)

    async def _answer(self, unit_id: int, message: bytes) -> bytes:
        function, address, count = struct.unpack_from(">BHH", message)
        table: Table = "input" if function == 4 else "holding"
        values = list(struct.unpack_from(f">{count}H", message, 6)) if function == 16 else None
        unit = self.units.get(unit_id)
        if unit is None or unit_id in self.silent:
            return bytes([function | 0x80, ExcCodes.GATEWAY_NO_RESPONSE.value])
        got = await unit.answer(table, address, count, values)
        if isinstance(got, ExcCodes):
            return bytes([function | 0x80, got.value])
        if values is not None:
            return message[:5]
        return bytes([function, 2 * count]) + struct.pack(f">{count}H", *got)
