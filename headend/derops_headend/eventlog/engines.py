"""Settings of gateway and writer: the engine of the event log, and the shards to follow."""

from typing import Annotated

from pydantic import AfterValidator

SQLITE = "sqlite"
MAX_SHARDS = 64
_SCHEMES = ("nats://", "tls://")


def _check(text: str) -> str:
    if text == SQLITE or all(url.startswith(_SCHEMES) for url in text.split(",")):
        return text
    raise ValueError(f"is not {SQLITE}, nor URLs that begin with {' or '.join(_SCHEMES)}")


EventLogUrl = Annotated[str, AfterValidator(_check)]
"""``sqlite``, or the URLs of a NATS server or cluster, separated by commas."""


ALL_SHARDS = "all"


def parse_shards(text: str) -> tuple[int, ...]:
    """Return the shards that a text like ``0,2`` names, in order; none for ``all``."""
    if text == ALL_SHARDS:
        return ()
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < MAX_SHARDS for part in parts):
        raise ValueError(
            f"is not {ALL_SHARDS}, nor numbers from 0 to {MAX_SHARDS - 1} with commas between"
        )
    return tuple(sorted({int(part) for part in parts}))


def _check_shards(text: str) -> str:
    parse_shards(text)
    return text


ShardNumbers = Annotated[str, AfterValidator(_check_shards)]
"""``all``, or numbers of shards, separated by commas."""
