"""Where the writers leave word, and gateways read it: beside the log, on the log's own engine.

Here for a log in a file; for NATS see ``jetstream_words``. A word is no data: one that is lost is
followed by the next within seconds.
"""

import asyncio
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from derops.errors import DeropsError
from derops_headend.writing.word import MAX_WORD_BYTES, WriterWord, decode, encode


class WordUnavailableError(DeropsError):
    """Word cannot be left or read now."""


class WriterWords(Protocol):
    """The newest word of each shard's writer."""

    async def leave(self, word: WriterWord) -> None:
        """Put a word in the place of the one before; no reader sees half of it.

        Raises:
            WordUnavailableError: It is not there, or may not be.
        """

    async def read(self, shards: Sequence[int]) -> dict[int, WriterWord]:
        """Return the words of some shards; those that nobody left, or cannot be read, are missing.

        Raises:
            WordUnavailableError: They cannot be had now.
        """

    async def close(self) -> None:
        """Let go of the engine."""


class FileWords:
    """Words in small files in the directory of the log: ``writer-0.json``."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    async def leave(self, word: WriterWord) -> None:
        """Replace the file of a shard.

        Raises:
            WordUnavailableError: The directory is not there, or has no room.
        """
        try:
            await asyncio.to_thread(self._replace, word)
        except OSError as error:
            raise WordUnavailableError(f"{self._directory}: {error.strerror}") from error

    async def read(self, shards: Sequence[int]) -> dict[int, WriterWord]:
        """Return the words that are there.

        Raises:
            WordUnavailableError: The disk refuses.
        """
        try:
            return await asyncio.to_thread(self._read, shards)
        except OSError as error:
            raise WordUnavailableError(f"{self._directory}: {error.strerror}") from error

    async def close(self) -> None:
        """Do nothing: no file is open."""

    def _path(self, shard: int) -> Path:
        return self._directory / f"writer-{shard}.json"

    def _replace(self, word: WriterWord) -> None:
        path = self._path(word.shard)
        fresh = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            # Not synced: after a loss of power there is a new word within seconds, or none, and
            # what is left of a file without its end is no word.
            fresh.touch(mode=0o600)
            fresh.write_bytes(encode(word))
            fresh.replace(path)
        except OSError:
            with suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise

    def _read(self, shards: Sequence[int]) -> dict[int, WriterWord]:
        found = {}
        for shard in shards:
            try:
                with self._path(shard).open("rb") as file:
                    data = file.read(MAX_WORD_BYTES + 1)
            except FileNotFoundError:
                continue
            word = decode(data, shard)
            if word is not None:
                found[shard] = word
        return found
