"""What the gateway and the writer ask of the event log, whichever engine keeps it."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from derops.errors import DeropsError
from derops.wire.v1 import log_pb2

MAX_READ_RECORDS = 1000
"""The most records of one read; their bytes are bounded too."""


class LogMissingError(DeropsError):
    """There is no event log yet: a gateway makes it when it first starts."""


class LogUnavailableError(DeropsError):
    """The engine is away, or did not answer in time."""


class LogMismatchError(DeropsError):
    """The log is not what the settings say, or its engine is too old; waiting does not help."""


class LogFullError(DeropsError):
    """The log is at its bound; nothing of the call is in it. The writer makes room."""


class StoredRecord(NamedTuple):
    """A record and where it lies."""

    offset: int
    record: log_pb2.LogRecord


class LogReader(Protocol):
    """What a writer needs of the log: it reads records, and trims those that nobody needs."""

    @property
    def log_id(self) -> str:
        """Random, made with the log: offsets of another log mean nothing in this one."""

    def bounds(self) -> tuple[int, int]:
        """Return the offsets of the first and the last record; (1, 0) before the first append."""

    def read(self, after: int, limit: int = MAX_READ_RECORDS) -> list[StoredRecord]:
        """Return up to ``limit`` records after an offset, in order, about 1 MiB at most. Blocks.

        The list is empty only if the log has nothing after the offset.

        Raises:
            LogDamagedError: The next record cannot be read, or does not match its checksum.
            LogUnavailableError: The engine is away.
        """

    def raw(self, offset: int) -> bytes:
        """Return the bytes of one record, unchecked; none where they cannot be read. Blocks.

        Raises:
            LogUnavailableError: The engine is away.
        """

    def trim(self, through: int) -> None:
        """Forget records up to an offset, inclusive; the last of all may stay. Blocks.

        One call may do only a step of it, the oldest first.
        """

    def close(self) -> None:
        """Close the log; make durable what was accepted."""


class EventLog(Protocol):
    """Where a gateway stores what arrives. Offsets begin at 1 and rise by 1; none is used twice.

    Entries are durable once their append returns: they outlive ``kill -9`` and loss of power.
    """

    async def append(self, entries: Sequence[log_pb2.LogEntry]) -> None:
        """Append; return once it is durable.

        Concurrent calls share records and commits, in the order of the calls. All entries of a
        call for one asset become durable in their order, or none of them.

        Raises:
            LogFullError: There is no room.
            LogUnavailableError: The engine is away; whether it is in the log is not known.
        """

    def fill(self) -> float:
        """Return the share of the log's bound that is taken, 1 = full. Does not block."""
