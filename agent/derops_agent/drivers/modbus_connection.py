"""One TCP connection to a Modbus device or gateway, which tells late answers from others.

Messages are those of pymodbus. Its client is not used, as it takes an answer without a transaction
id for the answer to the last request, forgets half an answer when it sends, and drops more than
264 bytes that come at once, as a late answer and the next one do.
"""

import asyncio
import secrets
import struct
from collections import deque
from collections.abc import Callable

from pymodbus.pdu import ModbusPDU
from pymodbus.pdu.decoders import DecodePDU

MAX_OUTSTANDING = 64
"""How many requests without an answer are remembered, to tell a late answer; and how many with one,
to tell an answer that comes twice."""

MOST_UNASKED = 2 * MAX_OUTSTANDING
"""How many messages may come after a request that are not its answer; with more, the connection is
closed. Every answer that is remembered may come late, and twice."""

_HEADER = struct.Struct(">HHHB")
"""Transaction id, protocol (0), length of what follows, unit id."""

_LENGTHS = range(2, 255)
_EXCEPTION = 0x80
_ID_BYTES = 2


class Connection(asyncio.Protocol):
    """Sends one request at a time, each with a transaction id that nobody can guess.

    Some gateways answer with ids of their own: always the same, or the last one plus one. They are
    believed until a request has no answer; after that, what may be the answer to another request
    is not taken.
    """

    def __init__(self, on_late: Callable[[int, float], None]) -> None:
        """Begin.

        Args:
            on_late: Called with the unit id of an answer for which nobody waits any more, and the
                seconds that it took.
        """
        self._on_late = on_late
        self._transport: asyncio.Transport | None = None
        self._decoder = DecodePDU(is_server=False)
        self._received = b""
        self._asked: dict[int, tuple[ModbusPDU, float]] = {}
        self._answered: deque[int] = deque(maxlen=MAX_OUTSTANDING)
        self._waiting: tuple[int, asyncio.Future[ModbusPDU]] | None = None
        self._unasked = 0
        self._problem = "the connection was closed"
        self.heard_seconds: float | None = None
        """When an answer to any request last came, on the loop's clock; None = never."""

        self.mixes_up = False
        """Whether a message came whose id is that of no request."""

    @property
    def is_open(self) -> bool:
        """Tell whether a request can be sent."""
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: ModbusPDU) -> ModbusPDU:
        """Send a request and return its answer, however long it takes.

        Raises:
            ConnectionError: The connection ended before.
        """
        if self._transport is None:
            raise ConnectionError(self._problem)
        self._unasked = 0
        number = self._new_id()
        request.transaction_id = number
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[ModbusPDU] = loop.create_future()
        self._asked[number] = request, loop.time()
        if len(self._asked) > MAX_OUTSTANDING:
            del self._asked[next(iter(self._asked))]
        self._waiting = number, answer
        message = bytes([request.function_code]) + request.encode()
        header = _HEADER.pack(number, 0, len(message) + 1, request.dev_id)
        self._transport.write(header + message)
        try:
            return await answer
        finally:
            self._waiting = None

    def close(self) -> None:
        """End it; what was not sent yet is not sent."""
        if self._transport is not None:
            self._transport.abort()
        self._end()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take what to write to."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101  # asyncio's promise, for mypy
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """End the request that waits."""
        self._end()

    def data_received(self, data: bytes) -> None:
        """Take what came, message by message."""
        self._received += data
        at = 0
        while len(self._received) - at > _HEADER.size:
            number, protocol, length, unit_id = _HEADER.unpack_from(self._received, at)
            if protocol or length not in _LENGTHS:
                # Where the next message begins, nobody knows.
                self._refuse(f"0x{self._received[at : at + 8].hex()} is no Modbus TCP")
                break
            size = _HEADER.size - 1 + length
            if length == 2 and self._received[at + _HEADER.size] & _EXCEPTION:
                size += 1  # some devices count one byte too few of an exception
            if len(self._received) - at < size:
                break
            self._take(number, unit_id, self._received[at + _HEADER.size : at + size])
            at += size
            if self._unasked > MOST_UNASKED:
                self._refuse(f"more than {MOST_UNASKED} messages that answer nothing came")
                break
        self._received = self._received[at:]

    def _refuse(self, problem: str) -> None:
        """End it, as what comes cannot be relied on."""
        self.mixes_up = True
        self._problem = f"the connection was closed: {problem}"
        self.close()

    def _take(self, number: int, unit_id: int, message: bytes) -> None:
        waiting, number = self._waiting, self._recognized(number)
        asked, asked_seconds = self._asked.get(number, (None, 0.0))
        if (
            asked is None
            or (asked.dev_id and unit_id != asked.dev_id)
            or message[0] & ~_EXCEPTION != asked.function_code
        ):
            self.mixes_up = True
            self._unasked += 1
            return
        del self._asked[number]
        self._answered.append(number)
        now = self.heard_seconds = asyncio.get_running_loop().time()
        if waiting is None or waiting[0] != number:
            self._unasked += 1
            self._on_late(asked.dev_id, now - asked_seconds)
            return
        answer = self._decoder.decode(message)
        if not waiting[1].done() and answer is not None:
            waiting[1].set_result(answer)

    def _recognized(self, number: int) -> int:
        """Return the id that was asked, of one that came."""
        is_strange = number not in self._asked and number not in self._answered
        if is_strange and self._waiting is not None and len(self._asked) == 1:
            # An id of its own. As all else was answered, it can be the answer to nothing else.
            self.mixes_up = True
            return self._waiting[0]
        return number

    def _end(self) -> None:
        self._transport = None
        if self._waiting is not None and not self._waiting[1].done():
            self._waiting[1].set_exception(ConnectionError(self._problem))

    def _new_id(self) -> int:
        while True:
            number = int.from_bytes(secrets.token_bytes(_ID_BYTES))
            if number and number not in self._asked:
                return number
