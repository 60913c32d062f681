"""What the writer of a shard says of itself, for whoever has its log but no database. Pure.

A word is JSON of bounded size; fields are only added, and those that a reader does not know are
passed over.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from derops.data_path import LINK_OF, Link, SharedFault

MAX_WORD_BYTES = 4096
MAX_MESSAGE = 400
"""Characters; the longest of them takes six bytes of JSON."""

FAULTS = frozenset(
    {
        SharedFault.LOG_FAILING,
        SharedFault.LOG_DAMAGED,
        *(fault for fault in SharedFault if LINK_OF[fault] is Link.DATABASE),
    }
)
"""What a writer may say is broken."""

_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class WriterWord:
    """Where the writer of one shard stands. Instants are microseconds of its clock since 1970."""

    shard: int
    writer: str
    """Random, made with the process."""

    committed: int | None
    """The offset that is in the database; None = the writer has not asked it yet."""

    last: int
    """The offset of the log's last record as the writer saw it."""

    waiting_since_us: int
    """When a gateway received the next record that is to be stored; 0 = none waits."""

    fault: SharedFault | None
    message: str
    since_us: int
    """From when on the fault holds; 0 = there is none."""

    left_us: int


def encode(word: WriterWord) -> bytes:
    """Return a word as JSON of at most ``MAX_WORD_BYTES``."""
    message = word.message[:MAX_MESSAGE]
    return json.dumps(asdict(word) | {"message": message}, separators=(",", ":")).encode()


def decode(data: bytes, shard: int) -> WriterWord | None:
    """Return the word of a shard; None = this is none, or one that nobody could make."""
    if len(data) > MAX_WORD_BYTES:
        return None
    try:
        found = json.loads(data)
        return _read(found, shard) if isinstance(found, dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _read(found: Mapping[str, Any], shard: int) -> WriterWord:
    # A newer writer may know more faults: of those nobody here could say which link they break.
    fault = SharedFault(found["fault"]) if found["fault"] is not None else None
    if fault is not None and fault not in FAULTS:
        raise ValueError("is no fault of a writer")
    committed = found["committed"]
    return WriterWord(
        shard=shard,
        writer=str(found["writer"])[:64],
        committed=None if committed is None else _number(committed),
        last=_number(found["last"]),
        waiting_since_us=_number(found["waiting_since_us"]),
        fault=fault,
        message=str(found["message"])[:MAX_MESSAGE],
        since_us=_number(found["since_us"]),
        left_us=_number(found["left_us"]),
    )


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST:
        raise ValueError("is no offset or instant")
    return value
