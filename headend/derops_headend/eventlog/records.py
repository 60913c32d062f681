"""Entries into records of bounded size, the same for every engine."""

from collections.abc import Iterable
from functools import lru_cache

from derops.wire.v1 import log_pb2

MAX_RECORD_BYTES = 256 * 1024
"""Entries are packed into one record up to this; a greater single entry has a record of its own."""

_ENTRIES_TAG = bytes([log_pb2.LogRecord.ENTRIES_FIELD_NUMBER << 3 | 2])
"""A length-delimited field of the wire format."""


def pack(entries: Iterable[bytes]) -> list[bytes]:
    """Return records with all entries, in their order.

    A record is its entries, each behind its tag and length. Put together by hand, as a LogRecord
    would copy each entry once more.

    Args:
        entries: LogEntry messages, serialised.
    """
    records: list[bytes] = []
    parts: list[bytes] = []
    size = 0
    for entry in entries:
        head = _head(len(entry))
        size += len(head) + len(entry)
        if parts and size > MAX_RECORD_BYTES:
            records.append(b"".join(parts))
            parts, size = [], len(head) + len(entry)
        parts += (head, entry)
    records.append(b"".join(parts))
    return records


@lru_cache(maxsize=4096)
def _head(length: int) -> bytes:
    """Return tag and length of an entry."""
    head = bytearray(_ENTRIES_TAG)
    while length > 127:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head)
