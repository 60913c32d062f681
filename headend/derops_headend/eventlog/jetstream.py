"""The event log in NATS JetStream: several gateways append, one writer a shard reads.

Each shard is a stream of its own, and each record one message. An asset stays in its shard, so its
entries keep their order. What makes an acknowledgement durable is the server's setting
``sync_interval: always``, which no client can see: it is in the documentation.
"""

import asyncio
import hashlib
import secrets
import ssl
import threading
import zlib
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import nats
import nats.errors
import structlog
from google.protobuf.message import DecodeError
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, RawStreamMsg, StorageType, StreamConfig, StreamInfo
from nats.js.errors import APIError, BadRequestError, NotFoundError

from derops.errors import DeropsError, LogDamagedError
from derops.wire.v1 import log_pb2
from derops_headend.eventlog.packing import encode, pack
from derops_headend.ports import (
    LogFullError,
    LogMissingError,
    LogUnavailableError,
    StoredRecord,
)

OLDEST_SERVER = (2, 10, 23)
"""Earlier ones could lose a whole stream in a crash."""

DUPLICATE_WINDOW_SECONDS = 600
MAX_READ_BYTES = 1024 * 1024
_CHECKSUM = "Derops-Crc32"
_STREAM_FULL = 10077
_FILL_SECONDS = 0.5
_TIMEOUT_SECONDS = 2.0
_READ_AHEAD = 16

Answer = TypeVar("Answer")


class LogMismatchError(DeropsError):
    """The streams are not what the settings say, or the server is too old."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JetStreamSettings:
    """Where the streams are.

    Attributes:
        url: ``nats://host:port`` or ``tls://host:port``; several separated by commas.
        prefix: The stream of shard 0 is called ``<prefix>_0``.
        credentials_file: A NATS credentials file (JWT and seed).
        ca_file: The CA of the server.
    """

    url: str
    prefix: str = "DEROPS_LOG"
    credentials_file: Path | None = None
    ca_file: Path | None = None

    def stream(self, shard: int) -> str:
        """Return the name of a shard's stream."""
        return f"{self.prefix}_{shard}"


def shard_of(asset_uid: str, shards: int) -> int:
    """Return the shard of an asset: the same in every gateway and version."""
    return zlib.crc32(asset_uid.encode()) % shards


class JetStreamEventLog:
    """The log of one gateway. For the event loop that opened it."""

    def __init__(
        self, connection: Client, settings: JetStreamSettings, shards: int, max_bytes: int
    ) -> None:
        self._connection = connection
        self._stream: JetStreamContext = connection.jetstream(timeout=_TIMEOUT_SECONDS)
        self._settings, self._shards, self._max_bytes = settings, shards, max_bytes
        self._boot_id = secrets.token_hex(8)
        self._appending = asyncio.Lock()
        self._attempted: set[str] = set()
        self._fill = 0.0
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
            settings: Where.
            shards: How many streams; fixed with the first start.
            max_bytes: Bound on each stream.
            replicas: Copies of each stream in the cluster.
            drop_oldest: At the bound drop what was acknowledged and is not in the database yet,
                instead of refusing what is new.

        Raises:
            LogUnavailableError: The server is away.
            LogMismatchError: It is too old, or the streams were made with other shards.
        """
        connection = await _connect(settings)
        try:
            config = StreamConfig(
                storage=StorageType.FILE,
                discard=DiscardPolicy.OLD if drop_oldest else DiscardPolicy.NEW,
                max_bytes=max_bytes,
                duplicate_window=DUPLICATE_WINDOW_SECONDS,
                num_replicas=replicas,
            )
            for shard in range(shards):
                await _make_stream(connection, settings.stream(shard), shards, config)
        except BaseException:
            await connection.close()
            raise
        return cls(connection, settings, shards, 0 if drop_oldest else max_bytes)

    async def append(self, entries: Sequence[log_pb2.LogEntry]) -> None:
        """Append; return once all of it is acknowledged by the server.

        What failed may be in the log all the same. Appending the same again within ten minutes
        does not store it twice.

        Raises:
            LogFullError: A stream is at its bound.
            LogUnavailableError: The server did not acknowledge.
        """
        if not entries:
            raise ValueError("nothing to append")
        by_shard: dict[int, list[log_pb2.LogEntry]] = {}
        for entry in entries:
            by_shard.setdefault(shard_of(entry.asset.uid, self._shards), []).append(entry)
        async with self._appending:  # what comes later must not overtake what is tried again
            async with asyncio.TaskGroup() as tasks:
                failures: list[Exception] = []
                for shard, its in by_shard.items():
                    tasks.create_task(self._append_to(shard, its, failures))
            if failures:
                raise failures[0]
            self._attempted.clear()

    def fill(self) -> float:
        """Return the share of the bound that the fullest stream takes; 0 where the oldest go."""
        return self._fill

    async def close(self) -> None:
        """Leave the server."""
        self._polling.cancel()
        with suppress(asyncio.CancelledError):
            await self._polling
        await self._connection.close()

    async def _append_to(
        self, shard: int, entries: list[log_pb2.LogEntry], failures: list[Exception]
    ) -> None:
        try:
            for place, body in enumerate(pack(map(encode, entries))):
                await self._publish(shard, place, body)
        except (LogFullError, LogUnavailableError) as error:
            failures.append(error)

    async def _publish(self, shard: int, place: int, body: bytes) -> None:
        # The same content at the same place is the same message: whoever tries an append again
        # comes to the ids of the first try.
        digest = hashlib.blake2b(body, digest_size=16).hexdigest()
        message_id = f"{self._boot_id}-{place}-{digest}"
        first_attempt = message_id not in self._attempted
        self._attempted.add(message_id)
        name = self._settings.stream(shard)
        headers = {"Nats-Msg-Id": message_id, _CHECKSUM: str(zlib.crc32(body))}
        try:
            answer = await self._stream.publish(
                name, body, timeout=_TIMEOUT_SECONDS, stream=name, headers=headers
            )
        except APIError as error:
            if error.err_code == _STREAM_FULL:
                raise LogFullError(f"stream {name} holds its bound") from error
            raise LogUnavailableError(f"stream {name}: {error}") from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise LogUnavailableError(f"stream {name}: {error or type(error).__name__}") from error
        if answer.duplicate and first_attempt:
            self._log.error("log.duplicate_id", stream=name, sequence=answer.seq)
            raise LogUnavailableError(f"stream {name} calls a new message a duplicate")

    async def _poll_fill(self) -> None:
        while self._max_bytes:
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
        """
        self._name = settings.stream(shard)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name=f"log-{shard}", daemon=True
        )
        self._thread.start()
        self._connection: Client | None = None
        try:
            self._connection = self._run(_connect(settings))
            self._stream: JetStreamContext = self._connection.jetstream(timeout=_TIMEOUT_SECONDS)
            self._log_id = (self._info().config.metadata or {}).get("log_id", "")
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

    def read(self, after: int, limit: int = 256) -> list[StoredRecord]:
        """Return up to ``limit`` records after an offset, about 1 MiB at most.

        Raises:
            LogDamagedError: The next record does not match its checksum.
            LogUnavailableError: The server is away.
        """
        first, last = self.bounds()
        offsets = range(max(after + 1, first), min(last, after + limit) + 1)
        found: list[StoredRecord] = []
        size = 0
        for start in range(0, len(offsets), _READ_AHEAD):
            for message in self._run(self._fetch(offsets[start : start + _READ_AHEAD])):
                if message is None:
                    continue  # trimmed meanwhile, or deleted: the writer sees the hole
                try:
                    found.append(self._decode(message))
                except LogDamagedError:
                    if found:
                        return found
                    raise
                size += len(message.data or b"")
            if size >= MAX_READ_BYTES:
                break
        return found

    def trim(self, through: int) -> None:
        """Forget the records up to an offset."""
        self._run(self._guard(self._stream.purge_stream(self._name, seq=through + 1)))

    def close(self) -> None:
        """Leave the server."""
        if self._connection is not None:
            self._run(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _info(self) -> StreamInfo:
        return self._run(self._guard(self._stream.stream_info(self._name)))

    async def _fetch(self, offsets: Sequence[int]) -> list[RawStreamMsg | None]:
        return await asyncio.gather(*(self._fetch_one(offset) for offset in offsets))

    async def _fetch_one(self, offset: int) -> RawStreamMsg | None:
        try:
            return await self._guard(self._stream.get_msg(self._name, seq=offset))
        except LogMissingError:
            return None

    async def _guard(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        try:
            return await call
        except NotFoundError as error:
            raise LogMissingError(f"{self._name}: {error.description}") from error
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise LogUnavailableError(f"{self._name}: {error or type(error).__name__}") from error

    def _decode(self, message: RawStreamMsg) -> StoredRecord:
        body, offset = message.data or b"", message.seq or 0
        if (message.headers or {}).get(_CHECKSUM) == str(zlib.crc32(body)):
            with suppress(DecodeError):
                return StoredRecord(offset, log_pb2.LogRecord.FromString(body))
        raise LogDamagedError(self._name, offset)

    def _run(self, call: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result()


async def _connect(settings: JetStreamSettings) -> Client:
    options: dict[str, Any] = {}
    if settings.credentials_file is not None:
        options["user_credentials"] = str(settings.credentials_file)
    if settings.ca_file is not None:
        options["tls"] = ssl.create_default_context(cafile=str(settings.ca_file))
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):  # it would try for ever, as it does later
            connection = await nats.connect(
                servers=settings.url.split(","),
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.2,
                connect_timeout=2,
                error_cb=_ignore,
                **options,
            )
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise LogUnavailableError(f"{settings.url}: {error or type(error).__name__}") from error
    found = connection.connected_server_version
    if (found.major, found.minor, found.patch) < OLDEST_SERVER:
        await connection.close()
        oldest = ".".join(map(str, OLDEST_SERVER))
        raise LogMismatchError(
            f"nats-server is {found.major}.{found.minor}.{found.patch}; "
            f"before {oldest} it could lose a stream in a crash: upgrade it"
        )
    return connection


async def _ignore(_: Exception) -> None:
    """Errors reach whoever made the call; nats-py would log each once more."""


async def _make_stream(connection: Client, name: str, shards: int, config: StreamConfig) -> None:
    stream = connection.jetstream(timeout=_TIMEOUT_SECONDS)
    config = config.evolve(
        name=name,
        subjects=[name],
        metadata={"log_id": secrets.token_hex(16), "shards": str(shards)},
    )
    try:
        try:
            info = await stream.stream_info(name)
        except NotFoundError:
            with suppress(BadRequestError):  # another gateway was faster
                await stream.add_stream(config)
            info = await stream.stream_info(name)
        made_with = (info.config.metadata or {}).get("shards")
        if made_with != str(shards):
            raise LogMismatchError(
                f"stream {name} was made with {made_with} shards, not {shards}: assets would change"
                " their shard, and lose their order; keep the number, or use another prefix"
            )
        kept = info.config
        if (kept.max_bytes, kept.discard, kept.num_replicas) != (
            config.max_bytes, config.discard, config.num_replicas
        ):  # fmt: skip
            await stream.update_stream(config.evolve(metadata=kept.metadata))
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise LogUnavailableError(f"stream {name}: {error or type(error).__name__}") from error
