"""Modbus TCP: one connection for each host and port, shared by all units behind it.

Devices answer one request at a time and mix up their answers when asked faster, so requests of one
connection wait for each other. After a request without an answer the connection is closed: a late
answer must not be taken for that of the next request.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple, TypeAlias

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU

from derops.errors import DeviceRefusedError, DeviceTimeoutError, DeviceUnreachableError
from derops_agent.drivers.units import MOST_SECONDS, UnitOptions

MOST_REGISTERS = 120
"""Of one request; the protocol allows 125 to read and 123 to write, some gateways fewer."""

Table = Literal["holding", "input"]
_Answer: TypeAlias = Awaitable[ModbusPDU]

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
_FINAL = frozenset({1, 2, 3})  # the others may pass, or do not say whether the device acted
_OF_REGISTERS = frozenset({4, 8})  # of what was asked for, not of the unit as a whole


class AnsweredError(DeviceTimeoutError):
    """The unit is there, and failed at what it was asked for alone."""


class Address(NamedTuple):
    """Where a connection goes."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Bus:
    """A connection and all units behind it."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self._client: AsyncModbusTcpClient | None = None
        self._lock = asyncio.Lock()

    async def request(
        self, what: str, timeout_seconds: float, call: Callable[[AsyncModbusTcpClient], _Answer]
    ) -> ModbusPDU:
        """Ask one thing, once all that was asked before is answered; that wait is not counted.

        Raises:
            DeviceTimeoutError: No answer in time, or one that may pass.
            DeviceRefusedError: The device answered that it will not.
        """
        async with self._lock:
            try:
                async with asyncio.timeout(timeout_seconds):
                    answer = await call(await self._connected())
            except TimeoutError as error:
                connected = self._client is not None and self._client.connected
                self._drop()
                missing = "connected, but no answer" if connected else "no connection"
                raise DeviceTimeoutError(
                    f"{what}, {self.address}: {missing} within {timeout_seconds:g} s"
                ) from error
            except ModbusException as error:
                self._drop()
                raise DeviceTimeoutError(f"{what}, {self.address}: {error}") from error
            except BaseException:
                self._drop()
                raise
        self._check(answer, what)
        return answer

    async def close(self) -> None:
        """End the connection; a later request opens it again."""
        async with self._lock:
            self._drop()

    async def _connected(self) -> AsyncModbusTcpClient:
        if self._client is not None and self._client.connected:
            return self._client
        self._drop()
        client = AsyncModbusTcpClient(
            self.address.host,
            port=self.address.port,
            timeout=MOST_SECONDS,  # the time-out of each request is shorter
            retries=0,
            reconnect_delay=0,
        )
        self._client = client
        if not await client.connect():
            raise DeviceTimeoutError(f"no connection to {self.address}")
        return client

    def _drop(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _check(self, answer: ModbusPDU, what: str) -> None:
        if not answer.isError():
            return
        code = answer.exception_code
        name = _EXCEPTIONS.get(code, "unknown")
        text = f"{what}, {self.address}: the device answered exception {code} ({name})"
        if code in _FINAL:
            raise DeviceRefusedError(text)
        raise AnsweredError(text) if code in _OF_REGISTERS else DeviceTimeoutError(text)


@contextmanager
def before_writing() -> Iterator[None]:
    """Say of what fails in here that nothing was written yet."""
    try:
        yield
    except DeviceTimeoutError as error:
        raise DeviceUnreachableError(str(error)) from error


class Unit:
    """One unit behind a connection, and how long it may take for an answer."""

    def __init__(self, bus: Bus, unit_id: int, timeout_seconds: float) -> None:
        self._bus, self._unit_id, self._timeout_seconds = bus, unit_id, timeout_seconds

    def __str__(self) -> str:
        return f"unit {self._unit_id} at {self._bus.address}"

    async def read(self, register: int, count: int, table: Table = "holding") -> bytes:
        """Return ``count`` registers, two bytes each.

        Raises:
            DeviceTimeoutError: No answer, or one that may pass.
            DeviceRefusedError: The device does not have them.
        """
        data = b""
        while len(data) < 2 * count:
            at = len(data) // 2
            data += await self._read(register + at, min(count - at, MOST_REGISTERS), table)
        return data

    async def write(self, register: int, data: bytes) -> None:
        """Write registers, two bytes each, in one request.

        Raises:
            DeviceTimeoutError: It is not known whether the device acted.
            DeviceRefusedError: The device answered that it will not.
        """
        words = [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]
        await self._bus.request(
            f"write of {len(words)} registers at {register}, unit {self._unit_id}",
            self._timeout_seconds,
            lambda client: client.write_registers(register, words, device_id=self._unit_id),
        )

    async def close(self) -> None:
        """End the use of the connection; the last unit behind it closes it."""
        _, users = _buses[self._bus.address]
        if users > 1:
            _buses[self._bus.address] = (self._bus, users - 1)
            return
        del _buses[self._bus.address]
        await self._bus.close()

    async def _read(self, register: int, count: int, table: Table) -> bytes:
        what = f"read of {count} {table} registers at {register}, unit {self._unit_id}"

        def ask(client: AsyncModbusTcpClient) -> _Answer:
            read = (
                client.read_input_registers if table == "input" else client.read_holding_registers
            )
            return read(register, count=count, device_id=self._unit_id)

        answer = await self._bus.request(what, self._timeout_seconds, ask)
        if len(answer.registers) != count:
            raise AnsweredError(f"{what}: {len(answer.registers)} registers came back")
        return b"".join(word.to_bytes(2) for word in answer.registers)


_buses: dict[Address, tuple[Bus, int]] = {}


def take_unit(options: UnitOptions) -> Unit:
    """Return a unit; all behind one host and port share a connection."""
    address = Address(options.host, options.port)
    bus, users = _buses.get(address) or (Bus(address), 0)
    _buses[address] = (bus, users + 1)
    return Unit(bus, options.unit_id, options.timeout_seconds)
