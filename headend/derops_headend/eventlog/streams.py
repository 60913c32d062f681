"""The streams of the event log in NATS JetStream: where they are, and what they must be."""

import asyncio
import secrets
import ssl
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nats
import nats.errors
from nats.aio.client import Client
from nats.js.api import StreamConfig
from nats.js.errors import BadRequestError, NotFoundError

from derops.errors import SchemaTooNewError
from derops_headend.eventlog.ports import LogMismatchError, LogMissingError, LogUnavailableError

OLDEST_SERVER = (2, 10, 23)
"""Earlier ones could lose a whole stream in a crash."""

FORMAT = 1
"""The version of the messages. Each stream keeps the oldest one whose programs can use it: where a
newer one only adds to the messages, the number stays."""

TIMEOUT_SECONDS = 2.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """What a stream says about itself.

    Attributes:
        log_id: Random, made with the stream.
        shards: How many streams the log has.
    """

    log_id: str
    shards: int


def read_facts(config: StreamConfig) -> StreamFacts:
    """Return what a gateway noted when it made the stream.

    Raises:
        LogMismatchError: No gateway made it.
        SchemaTooNewError: It is for newer programs.
    """
    notes = config.metadata or {}
    if not notes.get("log_id") or not notes.get("shards", "").isdecimal():
        raise LogMismatchError(
            f"stream {config.name} was not made by a gateway of derops: use another one"
        )
    found = int(notes.get("format", "1"))
    if found > FORMAT:
        raise SchemaTooNewError(f"stream {config.name}", found, FORMAT)
    return StreamFacts(log_id=notes["log_id"], shards=int(notes["shards"]))


def count_shards(settings: JetStreamSettings) -> int:
    """Return how many shards the log was made with. Blocks.

    Raises:
        LogMissingError: No gateway has made the streams yet.
        LogUnavailableError: The server is away.
        LogMismatchError: It is too old, or the stream is not ours.
        SchemaTooNewError: They are for newer programs.
    """
    return asyncio.run(_count_shards(settings))


async def _count_shards(settings: JetStreamSettings) -> int:
    name = settings.stream(0)
    connection = await connect(settings)
    try:
        info = await connection.jetstream(timeout=TIMEOUT_SECONDS).stream_info(name)
        return read_facts(info.config).shards
    except NotFoundError as error:
        raise LogMissingError(f"stream {name} does not exist") from error
    except (nats.errors.Error, TimeoutError, OSError) as error:
        raise LogUnavailableError(f"stream {name}: {error or type(error).__name__}") from error
    finally:
        await connection.close()


async def connect(settings: JetStreamSettings) -> Client:
    """Connect, and from then on reconnect for ever.

    Raises:
        LogUnavailableError: The server is away.
        LogMismatchError: It is too old.
    """
    options: dict[str, Any] = {}
    if settings.credentials_file is not None:
        options["user_credentials"] = str(settings.credentials_file)
    if settings.ca_file is not None:
        options["tls"] = ssl.create_default_context(cafile=str(settings.ca_file))
    try:
        async with asyncio.timeout(TIMEOUT_SECONDS):  # it would try for ever, as it does later
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


async def make_stream(connection: Client, name: str, shards: int, config: StreamConfig) -> None:
    """Make a stream that is not there; where it is, give it the bounds of ``config``.

    Raises:
        LogUnavailableError: The server is away, or has no room for the stream.
        LogMismatchError: It was made with another number of shards, or not by a gateway.
        SchemaTooNewError: It is for newer programs.
    """
    stream = connection.jetstream(timeout=TIMEOUT_SECONDS)
    config = config.evolve(
        name=name,
        subjects=[name],
        metadata={
            "log_id": secrets.token_hex(16),
            "shards": str(shards),
            "format": str(FORMAT),
        },
    )
    try:
        try:
            info = await stream.stream_info(name)
        except NotFoundError:
            with suppress(BadRequestError):  # another gateway was faster
                await stream.add_stream(config)
            info = await stream.stream_info(name)
        made_with = read_facts(info.config).shards
        if made_with != shards:
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
