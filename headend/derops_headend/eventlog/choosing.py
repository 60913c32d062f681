"""Which engine keeps the event log: one setting of gateway and writer."""

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
