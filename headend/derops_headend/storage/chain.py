"""How records of the audit hang together: each holds the hash of the one before it.

The hash is of a record's text, byte for byte. So the text is kept as it is, and never made anew.
"""

import hashlib
import json
from datetime import datetime
from typing import NamedTuple

NOTHING = "0" * 64
"""The hash before the first record of a chain."""

_HASH = 64


class Head(NamedTuple):
    """The last record of a chain."""

    chain: str
    seq: int
    hash: str
    """SHA-256 of the record, hex."""


class ChainedRecord(NamedTuple):
    """A record as it is kept."""

    chain: str
    seq: int
    hash: str
    at: datetime
    body: str
    """JSON; exactly the text that was hashed."""


def begin(chain: str) -> Head:
    """Return the head of a chain that has no record yet."""
    return Head(chain, 0, NOTHING)


def hash_of(body: str) -> str:
    """Return the hash of a record, hex."""
    return hashlib.sha256(body.encode()).hexdigest()


def link(head: Head, facts: str) -> tuple[str, Head]:
    """Return the next record of a chain, and the head that it makes.

    Args:
        head: The head of the chain so far.
        facts: What the record says: a JSON object that is not empty, in ASCII.
    """
    seq = head.seq + 1
    body = f'{{"chain":{json.dumps(head.chain)},"seq":{seq},"prev":"{head.hash}",{facts[1:]}'
    return body, Head(head.chain, seq, hash_of(body))


def read_stored(line: bytes) -> ChainedRecord | None:
    """Return the record of a line of a file, ``<hash> <record>`` and its end; None = damaged."""
    digest, body = line[:_HASH], line[_HASH + 1 : -1]
    if line[-1:] != b"\n" or hashlib.sha256(body).hexdigest().encode() != digest:
        return None
    facts = json.loads(body)
    at = datetime.fromisoformat(facts["at"])
    return ChainedRecord(facts["chain"], facts["seq"], digest.decode(), at, body.decode())
