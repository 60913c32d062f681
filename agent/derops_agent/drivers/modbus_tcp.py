"""Modbus TCP: one connection for each host and port, shared by all units behind it.

Devices answer one request at a time and mix up their answers when asked faster, so requests of one
connection wait for each other. After a request without an answer the connection is closed: a late
answer must not be taken for that of the next request.
"""

import asyncio
from typing import NamedTuple

from pymodbus.client import AsyncModbusTcpClient
from pymodbus.exceptions import ModbusException
from pymodbus.pdu import ModbusPDU

from derops.errors import DeviceRefusedError, DeviceTimeoutError

MOST_REGISTERS = 120
"""Of one request; the protocol allows 125 to read and 123 to write, some gateways fewer."""

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


class Address(NamedTuple):
    """Where a connection goes."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Bus:
    """A connection and all units behind it."""

    def __init__(self, address: Address, timeout_seconds: float) -> None:
        self.address = address
        self._timeout_seconds = timeout_seconds
        self._client: AsyncModbusTcpClient | None = None
        self._lock = asyncio.Lock()

    async def read(self, unit_id: int, register: int, count: int) -> bytes:
        """Return ``count`` holding registers, two bytes each.

        Raises:
            DeviceTimeoutError: No answer, or one that may pass.
            DeviceRefusedError: The device does not have them.
        """
        data = b""
        while len(data) < 2 * count:
            at = len(data) // 2
            part = min(count - at, MOST_REGISTERS)
            data += await self._read(unit_id, register + at, part)
        return data

    async def write(self, unit_id: int, register: int, data: bytes) -> None:
        """Write registers, two bytes each, in one request.

        Raises:
            DeviceTimeoutError: It is not known whether the device acted.
            DeviceRefusedError: The device answered that it will not.
        """
        words = [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]
        what = f"write of {len(words)} registers at {register}, unit {unit_id}"
        async with self._lock:
            client = await self._connected()
            answer = await self._ask(
                client.write_registers(register, words, device_id=unit_id), what
            )
        self._check(answer, what)

    async def close(self) -> None:
        """End the connection; a later request opens it again."""
        async with self._lock:
            self._drop()

    async def _read(self, unit_id: int, register: int, count: int) -> bytes:
        what = f"read of {count} registers at {register}, unit {unit_id}"
        async with self._lock:
            client = await self._connected()
            answer = await self._ask(
                client.read_holding_registers(register, count=count, device_id=unit_id), what
            )
        self._check(answer, what)
        if len(answer.registers) != count:
            raise DeviceTimeoutError(f"{what}: {len(answer.registers)} registers came back")
        return b"".join(word.to_bytes(2) for word in answer.registers)

    async def _connected(self) -> AsyncModbusTcpClient:
        if self._client is not None and self._client.connected:
            return self._client
        self._drop()
        client = AsyncModbusTcpClient(
            self.address.host,
            port=self.address.port,
            timeout=self._timeout_seconds,
            retries=0,
            reconnect_delay=0,
        )
        self._client = client
        try:
            connected = await client.connect()
        except BaseException:
            self._drop()
            raise
        if not connected:
            self._drop()
            raise DeviceTimeoutError(f"no connection to {self.address}")
        return client

    async def _ask(self, call: "asyncio.Future[ModbusPDU] | object", what: str) -> ModbusPDU:
        try:
            return await call  # type: ignore[misc, no-any-return]
        except ModbusException as error:
            self._drop()
            raise DeviceTimeoutError(f"{what}, {self.address}: {error}") from error
        except BaseException:
            self._drop()
            raise

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
        raise DeviceRefusedError(text) if code in _FINAL else DeviceTimeoutError(text)


_buses: dict[Address, tuple[Bus, int]] = {}


def take_bus(address: Address, timeout_seconds: float) -> Bus:
    """Return the connection to an address; the first to ask sets its time-out."""
    bus, users = _buses.get(address) or (Bus(address, timeout_seconds), 0)
    _buses[address] = (bus, users + 1)
    return bus


async def give_back(bus: Bus) -> None:
    """End the use of a connection; the last one closes it."""
    _, users = _buses[bus.address]
    if users > 1:
        _buses[bus.address] = (bus, users - 1)
        return
    del _buses[bus.address]
    await bus.close()
