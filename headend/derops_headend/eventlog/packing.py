"""Entries into records of bounded size, the same for every engine."""

from collections.abc import Iterable

from derops.wire.v1 import log_pb2

MAX_RECORD_BYTES = 256 * 1024
"""Entries are packed into one record up to this; a greater single entry has a record of its own."""

_ENTRIES_TAG = bytes([log_pb2.LogRecord.ENTRIES_FIELD_NUMBER << 3 | 2])
"""A length-delimited field of the wire format."""


def encode(entry: log_pb2.LogEntry) -> bytes:
    """Return a record of one entry.

    That is the entry with its tag and length, so that a record of several entries is these bytes in
    a row. Put together by hand, as a LogRecord around it would copy the entry once more.
    """
    body = entry.SerializeToString()
    length = bytearray()
    rest = len(body)
    while rest > 127:
        length.append(rest & 127 | 128)
        rest >>= 7
    length.append(rest)
    return _ENTRIES_TAG + bytes(length) + body


def pack(encoded: Iterable[bytes]) -> list[bytes]:
    """Return records with all entries, in their order."""
    records: list[bytearray] = [bytearray()]
    for entry in encoded:
        if records[-1] and len(records[-1]) + len(entry) > MAX_RECORD_BYTES:
            records.append(bytearray())
        records[-1] += entry
    return [bytes(record) for record in records]
