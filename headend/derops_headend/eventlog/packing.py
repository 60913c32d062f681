"""Entries into records of bounded size, the same for every engine."""

from collections.abc import Iterable

from derops.wire.v1 import log_pb2

MAX_RECORD_BYTES = 256 * 1024
"""Entries are packed into one record up to this; a greater single entry has a record of its own."""


def encode(entry: log_pb2.LogEntry) -> bytes:
    """Return a record of one entry.

    That is the entry with its tag, so that a record of several entries is these bytes in a row.
    """
    return log_pb2.LogRecord(entries=[entry]).SerializeToString()


def pack(encoded: Iterable[bytes]) -> list[bytes]:
    """Return records with all entries, in their order."""
    records: list[bytearray] = [bytearray()]
    for entry in encoded:
        if records[-1] and len(records[-1]) + len(entry) > MAX_RECORD_BYTES:
            records.append(bytearray())
        records[-1] += entry
    return [bytes(record) for record in records]
