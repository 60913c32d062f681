"""Modbus TCP: one connection for each host and port, shared by all units behind it.

Devices answer one request at a time and mix up their answers when asked faster, so requests of one
connection wait for each other. After a request without an answer the connection stays open: many
gateways have one socket, and take seconds to free it.
"""

import asyncio
import time
from collections.abc import Hashable, Iterator
from contextlib import contextmanager, suppress
from math import inf
from typing import Literal, NamedTuple

import structlog
from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.register_message import (
    ReadHoldingRegistersRequest,
    ReadInputRegistersRequest,
    WriteMultipleRegistersRequest,
)

from derops.errors import DeviceTimeoutError, DeviceUnreachableError
from derops_agent import metrics
from derops_agent.drivers.modbus_answers import (
    AcknowledgedError,
    AnsweredError,
    BusyError,
    NotAskedError,
    check_answer,
    is_of_the_gateway,
)
from derops_agent.drivers.modbus_connection import Connection
from derops_agent.drivers.modbus_line import DUE_PERIOD_SECONDS, TRY_SECONDS, Line
from derops_agent.drivers.modbus_turns import Turns
from derops_agent.drivers.units import UnitOptions
from derops_agent.ports import NOT_WRITTEN

MOST_REGISTERS = 120
"""The most of one request; the protocol allows 125 to read and 123 to write, some gateways fewer.
"""

SUSPECT_REQUESTS = 3
SUSPECT_SECONDS = 5
"""A connection is opened anew after so many requests, and so long, without any answer, once every
unit was asked."""

MOST_SUSPECT_SECONDS = 30
"""The same before every unit was asked."""

MOST_DIAL_SECONDS = 5
"""The longest time between two tries to connect; the first follows at once, the next after 1 s."""

_HUNG_UP = (
    "the connection was closed before anything was answered; some devices take one client at a time"
)

Table = Literal["holding", "input"]

_BUSY_PAUSES_SECONDS = (0.05, 0.2)
"""The times after which a device that was busy is asked the same again."""


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
        self.line = Line()
        self._turns = Turns()
        self._connection: Connection | None = None
        self._opened_seconds = 0.0
        self._unheard = 0
        self._mixes_up = False
        self._was_away, self._why_away = False, ""
        self._dials_failed = 0
        self._dialled_seconds = self._dial_at_seconds = -inf
        self._log = structlog.get_logger("modbus").bind(address=str(address))

    async def request(
        self, unit_id: int, what: str, request: ModbusPDU, due: Hashable = None
    ) -> ModbusPDU:
        """Send a request when it is the unit's turn; the wait for that has no bound here.

        Args:
            unit_id: Which unit.
            what: The request in words.
            request: The message.
            due: What is to be written, by this request or after it; None = nothing.

        Raises:
            DeviceTimeoutError: The unit did not answer in time, answered what may pass, or is
                backed off.
            DeviceRefusedError: The device refused.
        """
        self._refuse_backed_off(unit_id, what, due)
        async with self._turns.turn(lambda: self.line.rank(unit_id, due, _now())):
            self._refuse_backed_off(unit_id, what, due)  # others may have failed meanwhile
            answer = await self._ask(unit_id, what, request, due)
        check_answer(answer, f"{what}, {self.address}")
        return answer

    def close(self) -> None:
        """End the connection; a later request opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _refuse_backed_off(self, unit_id: int, what: str, due: Hashable) -> None:
        now = _now()
        if self.line.admits(unit_id, due, now):
            return
        unit = self.line.units[unit_id]
        since = _clock(now - (unit.silent_since_seconds or now))
        raise NotAskedError(f"{what}, {self.address}: not asked: silent since {since}, backed off")

    async def _ask(self, unit_id: int, what: str, request: ModbusPDU, due: Hashable) -> ModbusPDU:
        began = _now()
        seconds = self.line.begin(unit_id, due, began)
        missing = "no connection"
        connection: Connection | None = None
        try:
            async with asyncio.timeout(seconds):
                connection = await self._connected(what, due)
                missing = "connected, but no answer"
                answer = await connection.ask(request)
        except TimeoutError as error:
            self._note_silence(connection, unit_id, due)
            kind = NotAskedError if connection is None else DeviceTimeoutError
            raise kind(f"{what}, {self.address}: {missing} within {seconds:g} s") from error
        except ConnectionError as error:
            why = self._note_lost(connection, unit_id, due) or error
            raise DeviceTimeoutError(f"{what}, {self.address}: {why}") from error
        except BaseException as error:
            self._note_cancelled(
                connection, unit_id, due, _now() - began >= min(TRY_SECONDS, seconds)
            )
            if isinstance(error, asyncio.CancelledError):
                said = f"{what}, {self.address}: {missing}"
                raise asyncio.CancelledError(said) from None
            raise
        self._note_answer(answer, unit_id, due)
        return answer

    async def _connected(self, what: str, due: Hashable) -> Connection:
        if self._connection is not None and self._connection.is_open:
            return self._connection
        if self._connection is not None:
            self._drop("Lost")
        now = _now()
        at_seconds = self._dial_at_seconds
        if due is not None:
            at_seconds = min(at_seconds, self._dialled_seconds + DUE_PERIOD_SECONDS)
        if now < at_seconds:
            raise NotAskedError(f"{what}, {self.address}: no connection; {self._why_away}")
        self._dialled_seconds = now
        try:
            _, connection = await asyncio.get_running_loop().create_connection(
                lambda: Connection(self._note_late), *self.address
            )
        except BaseException as error:
            self._note_no_connection(str(error) or "the last try took too long")
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise NotAskedError(f"{what}, no connection to {self.address}: {error}") from error
            raise
        metrics.DEVICE_CONNECTIONS.labels("Opened").inc()
        self._connection, self._opened_seconds, self._unheard = connection, _now(), 0
        return connection

    def _drop(self, why: str) -> None:
        """End a connection; one that nothing ever came over counts as a failed try to connect."""
        connection = self._connection
        if connection is None:
            return
        self.close()
        metrics.DEVICE_CONNECTIONS.labels(why).inc()
        self._log.warning("connection.dropped", why=why)
        if connection.heard_seconds is None:
            self._note_no_connection(_HUNG_UP if why == "Lost" else "nothing on it was answered")
        if connection.heard_seconds is not None or connection.mixes_up:
            self._mixes_up = connection.mixes_up

    def _note_no_connection(self, why: str) -> None:
        metrics.DEVICE_CONNECTIONS.labels("Failed").inc()
        self._was_away, self._why_away = True, why
        self._dials_failed += 1
        pause_seconds = 2.0 ** (self._dials_failed - 2) if self._dials_failed > 1 else 0.0
        self._dial_at_seconds = _now() + min(pause_seconds, MOST_DIAL_SECONDS)

    def _note_answer(self, answer: ModbusPDU, unit_id: int, due: Hashable) -> None:
        if self._was_away:
            self._was_away = False
            self.line.forgive(_now())
        self._unheard = self._dials_failed = 0
        if is_of_the_gateway(answer):
            self._note_unanswered(unit_id, due)
        elif self.line.answered(unit_id, _now()):
            self._log.info("unit.answers_again", unit_id=unit_id)

    def _note_lost(self, connection: Connection | None, unit_id: int, due: Hashable) -> str:
        """Note that a connection ended under a request; return why, or "" if the error says it."""
        was_heard = connection is not None and connection.heard_seconds is not None
        if was_heard:
            self._note_unanswered(unit_id, due)  # some gateways hang up for one unit
        self._drop("Lost")
        return "" if connection is None or was_heard or connection.mixes_up else _HUNG_UP

    def _note_silence(self, connection: Connection | None, unit_id: int, due: Hashable) -> None:
        """Note a request without an answer; drop a connection that cannot be relied on any more."""
        if connection is None:
            return  # nothing was sent: that says nothing of the unit
        self._note_unanswered(unit_id, due)
        self._unheard += 1
        heard = connection.heard_seconds
        silent_seconds = _now() - (self._opened_seconds if heard is None else heard)
        if self._mixes_up or connection.mixes_up:
            self._drop("WrongIds")
        elif self._unheard >= SUSPECT_REQUESTS and silent_seconds >= (
            SUSPECT_SECONDS if self.line.is_silent else MOST_SUSPECT_SECONDS
        ):
            self._drop("Silent")
            self._was_away = True
            self.line.forgive(_now())

    def _note_cancelled(
        self, connection: Connection | None, unit_id: int, due: Hashable, was_silent: bool
    ) -> None:
        """Note that the caller's time is over before the unit answered."""
        if was_silent:
            self._note_silence(connection, unit_id, due)
            return
        self.line.abandoned(unit_id, _now())
        if self._mixes_up or (connection is not None and connection.mixes_up):
            self._drop("WrongIds")

    def _note_unanswered(self, unit_id: int, due: Hashable) -> None:
        if self.line.unanswered(unit_id, due, _now()):
            self._log.warning("unit.backed_off", unit_id=unit_id)

    def _note_late(self, unit_id: int, seconds: float) -> None:
        self._unheard = 0
        self.line.answered_late(unit_id, seconds, _now())


class Unit:
    """One unit behind a connection, and how long it may take for an answer."""

    def __init__(self, bus: Bus, unit_id: int) -> None:
        self._bus, self._unit_id = bus, unit_id
        self._reads_for: Hashable = None
        self._writes: Hashable = "a write"

    def __str__(self) -> str:
        return f"unit {self._unit_id} at {self._bus.address}"

    @contextmanager
    def before_writing(self, wanted: Hashable) -> Iterator[None]:
        """Mark what fails in this context as a failure before anything was written.

        Reads in here are part of a write that is due, and go before others; ``wanted`` is what is
        to be written.
        """
        self._reads_for = self._writes = wanted
        try:
            yield
        except DeviceTimeoutError as error:
            raise DeviceUnreachableError(str(error)) from error
        except asyncio.CancelledError as error:
            raise asyncio.CancelledError(NOT_WRITTEN, *error.args) from None
        finally:
            self._reads_for = None

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

        A device that has taken it and needs longer has taken it: what it holds is asked anyway.

        Raises:
            DeviceTimeoutError: It is not known whether the device acted.
            DeviceRefusedError: The device answered that it will not.
        """
        words = [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]
        with suppress(AcknowledgedError):
            await self._request(
                f"write of {len(words)} registers at {register}, unit {self._unit_id}",
                WriteMultipleRegistersRequest(
                    address=register, registers=words, dev_id=self._unit_id
                ),
                due=self._writes,
            )

    async def close(self) -> None:
        """End the use of the connection; the last unit behind it closes it."""
        self._bus.line.leave(self._unit_id)
        if self._bus.line.is_empty:
            del _buses[self._bus.address]
            self._bus.close()

    async def _request(self, what: str, request: ModbusPDU, due: Hashable) -> ModbusPDU:
        for pause_seconds in _BUSY_PAUSES_SECONDS:
            try:
                return await self._bus.request(self._unit_id, what, request, due=due)
            except BusyError:
                await asyncio.sleep(pause_seconds)
        return await self._bus.request(self._unit_id, what, request, due=due)

    async def _read(self, register: int, count: int, table: Table) -> bytes:
        what = f"read of {count} {table} registers at {register}, unit {self._unit_id}"
        message = ReadInputRegistersRequest if table == "input" else ReadHoldingRegistersRequest
        request = message(address=register, count=count, dev_id=self._unit_id)
        answer = await self._request(what, request, due=self._reads_for)
        if len(answer.registers) != count:
            raise AnsweredError(f"{what}: {len(answer.registers)} registers came back")
        return b"".join(word.to_bytes(2) for word in answer.registers)


_buses: dict[Address, Bus] = {}


def take_unit(options: UnitOptions) -> Unit:
    """Return a unit; all behind one host and port share a connection."""
    address = Address(options.host, options.port)
    bus = _buses.setdefault(address, Bus(address))
    bus.line.join(options.unit_id, options.timeout_seconds)
    return Unit(bus, options.unit_id)


def _count_backed_off() -> int:
    return sum(bus.line.count_backed_off() for bus in list(_buses.values()))


metrics.UNITS_BACKED_OFF.set_function(_count_backed_off)


def _now() -> float:
    return asyncio.get_running_loop().time()


def _clock(seconds_ago: float) -> str:
    """Return the time of day; it stays the same as time goes by, unlike a number of seconds."""
    return time.strftime("%H:%M:%S UTC", time.gmtime(round(time.time() - seconds_ago)))
