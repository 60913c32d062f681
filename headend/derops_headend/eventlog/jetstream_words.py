"""The words of writers in a key-value bucket of JetStream, one key for each shard.

A bucket is a stream ``KV_<bucket>`` with subjects ``$KV.<bucket>.<key>`` that keeps the newest
message of each: ``nats kv get DEROPS_LOG_WORDS shard_0`` shows one. A gateway makes it, and makes
it anew where it is gone.
"""

import asyncio
from collections.abc import Sequence

import nats.errors
from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import DiscardPolicy, StorageType, StreamConfig
from nats.js.errors import NotFoundError

from derops_headend.eventlog.ports import LogMismatchError, LogUnavailableError
from derops_headend.eventlog.streams import TIMEOUT_SECONDS, JetStreamSettings, connect
from derops_headend.eventlog.words import WordUnavailableError
from derops_headend.writing.word import MAX_WORD_BYTES, WriterWord, decode, encode

BUCKET_BYTES = 1024 * 1024
"""More than the words of all shards that a log can have."""


class JetStreamWords:
    """The bucket of one log. For one event loop; it connects when it is first used."""

    def __init__(self, settings: JetStreamSettings, *, copies: int | None = None) -> None:
        """Make it.

        Args:
            settings: Where the log is.
            copies: Of a bucket that is made, in the cluster; None = make none, as a writer.
        """
        self._settings, self._copies = settings, copies
        self._bucket = f"{settings.prefix}_WORDS"
        self._stream = f"KV_{self._bucket}"
        self._connection: Client | None = None

    async def leave(self, word: WriterWord) -> None:
        """Put a word under the key of its shard.

        Raises:
            WordUnavailableError: The server is away, or there is no bucket.
        """
        try:
            stream = await self._open()
            subject = self._subject(word.shard)
            await stream.publish(
                subject, encode(word), timeout=TIMEOUT_SECONDS, stream=self._stream
            )
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error

    async def read(self, shards: Sequence[int]) -> dict[int, WriterWord]:
        """Return the words that are there; make the bucket where it is not.

        Raises:
            WordUnavailableError: The server is away, or refuses.
        """
        try:
            stream = await self._open()
            if self._copies is not None:
                await self._make_bucket(stream, self._copies)
            words = await asyncio.gather(*(self._read_one(stream, shard) for shard in shards))
        except (nats.errors.Error, TimeoutError, OSError) as error:
            raise self._unavailable(error) from error
        return {word.shard: word for word in words if word is not None}

    async def close(self) -> None:
        """Leave the server."""
        if self._connection is not None:
            await self._connection.close()

    async def _open(self) -> JetStreamContext:
        if self._connection is None:
            try:
                self._connection = await connect(self._settings)
            except (LogUnavailableError, LogMismatchError) as error:
                raise WordUnavailableError(str(error)) from error
        return self._connection.jetstream(timeout=TIMEOUT_SECONDS)

    async def _make_bucket(self, stream: JetStreamContext, copies: int) -> None:
        try:
            await stream.stream_info(self._stream)
        except NotFoundError:
            await stream.add_stream(
                StreamConfig(
                    name=self._stream,
                    subjects=[f"$KV.{self._bucket}.>"],
                    storage=StorageType.FILE,
                    discard=DiscardPolicy.NEW,
                    max_bytes=BUCKET_BYTES,
                    max_msg_size=2 * MAX_WORD_BYTES,  # with its subject
                    max_msgs_per_subject=1,
                    num_replicas=copies,
                    allow_rollup_hdrs=True,
                    allow_direct=True,
                    deny_delete=True,
                )
            )

    async def _read_one(self, stream: JetStreamContext, shard: int) -> WriterWord | None:
        try:
            message = await stream.get_last_msg(self._stream, self._subject(shard))
        except NotFoundError:
            return None
        return decode(message.data or b"", shard)

    def _subject(self, shard: int) -> str:
        return f"$KV.{self._bucket}.shard_{shard}"

    def _unavailable(self, error: Exception) -> WordUnavailableError:
        return WordUnavailableError(f"{self._stream}: {error or type(error).__name__}")
