"""The event log in NATS JetStream: several gateways append, one writer a shard reads.

Each shard is a stream of its own, and each record one message. An asset stays in its shard, so its
entries keep their order. The server's setting ``sync_interval: always`` makes an acknowledgement
durable. No client can see it, so the documentation asks for it.
"""

import asyncio
import hashlib
import itertools
import json
import secrets
import threading
import zlib
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, Self, TypeVar

import nats.errors
import structlog
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RawStreamMsg, StorageType, StreamConfig, StreamInfo
from nats.js.errors import APIError, NotFoundError

from derops.errors import LogDamagedError
from derops.wire.v1 import log_pb2
from derops_headend.eventlog import metrics
from derops_headend.eventlog.ports import (
    MAX_READ_RECORDS,
    LogFullError,
    LogMissingError,
    LogUnavailableError,
    StoredRecord,
)
from derops_headend.eventlog.records import pack
from derops_headend.eventlog.streams import (
    TIMEOUT_SECONDS,
    JetStreamSettings,
    connect,
    make_stream,
    read_facts,
    shard_of,
)

__all__ = ["JetStreamEventLog", "JetStreamLogReader", "JetStreamSettings"]

DUPLICATE_WINDOW_SECONDS = 600
MAX_READ_BYTES = 1024 * 1024
_CHECKSUM = "Derops-Crc32"
_STREAM_FULL = 10077
_FILL_SECONDS = 0.5
_READ_AHEAD = 16

Answer = TypeVar("Answer")


class _IdTakenError(LogUnavailableError):
    """Another message with the same id is in the stream already."""


class _Message(NamedTuple):
    """A record on its way."""

    shard: int
    number: int
    """Among the records of its shard in one append."""

    body: bytes
    message_id: str
    first_try: bool


_Place = tuple[int, int, bytes]


def _place(message: _Message) -> _Place:
    """Return what identifies a message when its append is tried again."""
    return message.shard, message.number, hashlib.sha256(message.body).digest()


class JetStreamEventLog:
    """The log of one gateway. For the event loop that opened it."""

    def __init__(
        self, connection: Client, settings: JetStreamSettings, shards: int, max_bytes: int
    ) -> None:
        self._connection = connection
        self._stream: JetStreamContext = connection.jetstream(timeout=TIMEOUT_SECONDS)
        self._settings, self._shards, self._max_bytes = settings, shards, max_bytes
        self._boot_id = secrets.token_hex(8)
        self._appending = asyncio.Lock()
        self._numbers = itertools.count(1)
        self._tried: dict[_Place, str] = {}
        self._highest: dict[str, int] = {}
        self._fill = 0.0
        self._closing = False
        self._polling = asyncio.create_task(self._poll_fill())
        self._log = structlog.get_logger("log")

    @classmethod
    async def open(
        cls,
        settings: JetStreamSettings,
        *,
        shards: int,
        max_bytes: int,
        replicas: int = 1,
        drop_oldest: bool = False,
    ) -> Self:
        """Connect, and make the streams that are not there.

        Args:
            settings: Says which streams of which server.
            shards: How many streams; fixed with the first start.
            max_bytes: Bound on each stream.
            replicas: Copies of each stream in the cluster.
            drop_oldest: At the bound drop what was acknowledged and is not in the database yet,
                instead of refusing what is new.

        Raises:
            LogUnavailableError: The server is away.
            LogMismatchError: It is too old, or the streams were made with other shards.
            SchemaTooNewError: They are for newer programs.
        """
        connection = await connect(settings)
        try:
            config = StreamConfig(
                storage=StorageType.FILE,
                discard=DiscardPolicy.OLD if drop_oldest else DiscardPolicy.NEW,
                max_bytes=max_bytes,
                duplicate_window=DUPLICATE_WINDOW_SECONDS,
                num_replicas=replicas,
            )
            for shard in range(shards):
                await make_stream(connection, settings.stream(shard), shards, config)
        except BaseException:
            await connection.close()
            raise
        return cls(connection, settings, shards, 0 if drop_oldest else max_bytes)

    async def append(self, entries: Sequence[log_pb2.LogEntry]) -> None:
        """Append; return once all of it is acknowledged by the server.

        An append that failed may have stored its entries all the same. The same append within ten
        minutes does not store them twice.

        Raises:
            LogFullError: A stream is at its bound.
            LogUnavailableError: The server did not acknowledge.
        """
        if not entries:
            raise ValueError("nothing to append")
        async with self._appending:  # later records must not overtake those that are tried again
            messages: list[_Message] = []
            try:
                async with asyncio.TaskGroup() as tasks:
                    failures: list[Exception] = []
                    for shard, its in self._by_shard(entries).items():
                        tasks.create_task(self._append_to(shard, its, messages, failures))
                if failures:
                    raise failures[0]
            except BaseException:
                self._tried |= {_place(each): each.message_id for each in messages}
                raise
            if self._tried:
                for each in messages:
                    self._tried.pop(_place(each), None)

    def fill(self) -> float:
        """Return the share of the bound that the fullest stream takes; 0 where the oldest go."""
        return self._fill

    async def close(self) -> None:
        """Leave the server."""
        self._closing = True  # a cancel in the midst of a request may be lost
        self._polling.cancel()
        with suppress(asyncio.CancelledError):
            await self._polling
        await self._connection.close()

    def _by_shard(
        self, entries: Sequence[log_pb2.LogEntry]
    ) -> Mapping[int, Sequence[log_pb2.LogEntry]]:
        if self._shards == 1:
            return {0: entries}
        found: dict[int, list[log_pb2.LogEntry]] = {}
        for entry in entries:
            found.setdefault(shard_of(entry.asset.uid, self._shards), []).append(entry)
        return found

    async def _append_to(
        self,
        shard: int,
        entries: Sequence[log_pb2.LogEntry],
        messages: list[_Message],
        failures: list[Exception],
    ) -> None:
        """Publish the records of one shard; note in ``messages`` what was tried."""
        try:
            for number, body in enumerate(pack(entry.SerializeToString() for entry in entries)):
                message = self._message(shard, number, body)
                messages.append(message)
                try:
                    await self._publish(message)
                except _IdTakenError:
                    messages.remove(message)  # tried again, it gets another id
                    raise
        except (LogFullError, LogUnavailableError) as error:
            failures.append(error)

    def _message(self, shard: int, number: int, body: bytes) -> _Message:
        """Return a record with its id: that of the first try, where an append is tried again."""
        new = _Message(shard, number, body, f"{self._boot_id}-{next(self._numbers)}", True)
        if self._tried and (message_id := self._tried.get(_place(new))):
            return new._replace(message_id=message_id, first_try=False)
        return new

    async def _publish(self, message: _Message) -> None:
        name, body = self._settings.stream(message.shard), message.body
        headers = {"Nats-Msg-Id": message.message_id, _CHECKSUM: str(zlib.crc32(body))}
        try:
            answer = await self._stream.publish(
                name, body, timeout=TIMEOUT_SECONDS, stream=name, headers=headers
            )
        except APIError as error:
            if error.err_code == _STREAM_FULL:
                raise LogFullError(f"stream {name} holds its bound") from error
            raise LogUnavailableError(f"stream {name}: {error}") from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise LogUnavailableError(f"stream {name}: {error or type(error).__name__}") from error
        if answer.duplicate and message.first_try:
            self._log.error("log.duplicate_id", stream=name, sequence=answer.seq)
            raise _IdTakenError(f"stream {name} calls a new message a duplicate")
        if not answer.duplicate:
            self._note_place(name, answer.seq)

    def _note_place(self, name: str, sequence: int) -> None:
        """Alarm where the server gives an acknowledged offset again: the record there is lost."""
        highest = self._highest.get(name, 0)
        if sequence <= highest:
            metrics.LOG_WENT_BACK.inc()
            self._log.error("log.went_back", stream=name, acknowledged=highest, last=sequence - 1)
        self._highest[name] = sequence

    async def _poll_fill(self) -> None:
        while self._max_bytes and not self._closing:
            with suppress(nats.errors.Error, TimeoutError, OSError):
                infos = [
                    await self._stream.stream_info(self._settings.stream(shard))
                    for shard in range(self._shards)
                ]
                self._fill = max(info.state.bytes / self._max_bytes for info in infos)
            await asyncio.sleep(_FILL_SECONDS)


class JetStreamLogReader:
    """One shard of the log as its writer sees it. Methods block and may come from any thread."""

    def __init__(self, settings: JetStreamSettings, shard: int = 0) -> None:
        """Open a shard that is there.

        Raises:
            LogMissingError: No gateway has made the stream yet.
            LogUnavailableError: The server is away.
            LogMismatchError: It is too old, or the stream is not ours.
            SchemaTooNewError: It is for newer programs.
        """
        self._name = settings.stream(shard)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"log-{shard}", daemon=True
        )
        self._thread.start()
        try:
            self._connection: Client = self._run(connect(settings))
        except BaseException:
            self._end_loop()
            raise
        try:
            self._stream: JetStreamContext = self._connection.jetstream(timeout=TIMEOUT_SECONDS)
            self._log_id = read_facts(self._info().config).log_id
        except BaseException:
            self.close()
            raise

    @property
    def log_id(self) -> str:
        """Random, made with the stream."""
        return self._log_id

    def bounds(self) -> tuple[int, int]:
        """Return the offsets of the first and the last record; (1, 0) before the first append."""
        state = self._info().state
        return max(1, state.first_seq), state.last_seq

    def read(self, after: int, limit: int = MAX_READ_RECORDS) -> list[StoredRecord]:
        """Return up to ``limit`` records after an offset, about 1 MiB at most.

        Raises:
            LogDamagedError: The next record cannot be read, or does not match its checksum.
            LogUnavailableError: The server is away.
        """
        first, last = self.bounds()
        after = max(after, first - 1)
        found: list[StoredRecord] = []
        size = 0
        while after < last and len(found) < limit and size < MAX_READ_BYTES:
            through = min(last, after + min(_READ_AHEAD, limit - len(found)))
            messages = self._run(self._fetch(range(after + 1, through + 1)))
            try:
                for offset, message in messages:
                    found.append(self._decode(offset, message))
                    size += len(message.data or b"") if message else 0
            except LogDamagedError:
                if not found:
                    raise
                break
            after = through
        return found

    def raw(self, offset: int) -> bytes:
        """Return the bytes of one record, unchecked; none where they cannot be read."""
        message = self._run(self._fetch_one(offset))
        return (message and message.data) or b""

    def trim(self, through: int) -> None:
        """Forget the records up to an offset."""
        self._run(self._guard(self._stream.purge_stream(self._name, seq=through + 1)))

    def close(self) -> None:
        """Leave the server."""
        self._run(self._connection.close())
        self._end_loop()

    def _end_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _info(self) -> StreamInfo:
        return self._run(self._guard(self._stream.stream_info(self._name)))

    async def _fetch(self, offsets: Sequence[int]) -> list[tuple[int, RawStreamMsg | None]]:
        """Return the messages that should be there; None stands for one that cannot be read."""
        messages = await asyncio.gather(*map(self._fetch_one, offsets))
        found = list(zip(offsets, messages, strict=True))
        if None in messages:
            # The server says the same of a message that was removed and of one that is damaged.
            first, removed = await self._guard(self._find_removed())
            found = [
                (offset, message)
                for offset, message in found
                if message or (offset >= first and offset not in removed)
            ]
        return found

    async def _fetch_one(self, offset: int) -> RawStreamMsg | None:
        try:
            return await self._guard(self._stream.get_msg(self._name, seq=offset))
        except LogMissingError:
            return None

    async def _find_removed(self) -> tuple[int, frozenset[int]]:
        """Return the first offset of the stream, and those after it that were removed."""
        answer = await self._connection.request(
            f"$JS.API.STREAM.INFO.{self._name}",
            b'{"deleted_details": true}',
            timeout=TIMEOUT_SECONDS,
        )
        found = json.loads(answer.data)
        if "error" in found:
            APIError.from_error(found["error"])  # raises what fits
        state = found["state"]
        return state["first_seq"], frozenset(state.get("deleted") or ())

    async def _guard(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            return await call
        except NotFoundError as error:
            raise LogMissingError(f"{self._name}: {error.description}") from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise LogUnavailableError(f"{self._name}: {error or type(error).__name__}") from error

    def _decode(self, offset: int, message: RawStreamMsg | None) -> StoredRecord:
        body = (message and message.data) or b""
        headers = (message and message.headers) or {}
        if headers.get(_CHECKSUM) == str(zlib.crc32(body)):
            with suppress(DecodeError):
                return StoredRecord(offset, log_pb2.LogRecord.FromString(body))
        raise LogDamagedError(self._name, offset)

    def _run(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()
