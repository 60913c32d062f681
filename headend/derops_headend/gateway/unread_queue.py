"""Messages that one agent has not read yet, in memory that is bounded for all together."""

from collections import deque

from derops.wire.v1 import agent_pb2
from derops_headend.fleet.shares import Shares

_KIB, _MIB = 1024, 1024**2

UNREAD_BYTES, UNREAD_OF_ONE, UNREAD_SURE = 64 * _MIB, 256 * _KIB, 16 * _KIB
"""Bytes that agents have not read: of all agents, of one, and of each in any case."""

_WEIGHT_OF_ANSWER = 256
"""What a message to an agent costs beside its bytes: less than OVERHEAD_BYTES."""

Item = agent_pb2.GatewayMessage | str
"""A message, or the uid of a dispatch, which is written in the state it has by then."""


class UnreadQueue:
    """First in, first out. An empty one costs no queue.

    Args:
        shares: The memory of what all agents have not read.
        holder: The uid of the agent's asset.
    """

    __slots__ = ("_holder", "_shares", "_waiting", "bytes")

    def __init__(self, shares: Shares, holder: str) -> None:
        self._shares, self._holder = shares, holder
        self._waiting: deque[tuple[Item, int]] | None = None
        self.bytes = 0

    def put(self, item: Item) -> bool:
        """Add an item if there is room for it; tell whether there was."""
        size = _WEIGHT_OF_ANSWER + (0 if isinstance(item, str) else item.ByteSize())
        if not self._shares.take(self._holder, size):
            return False
        if self._waiting is None:
            self._waiting = deque()
        self.bytes += size
        self._waiting.append((item, size))
        return True

    def take(self) -> Item | None:
        """Return the next item to write; None = nothing waits."""
        if not self._waiting:
            return None
        item, size = self._waiting.popleft()
        self._free(size)
        return item

    def clear(self) -> None:
        """Drop what waits."""
        self._waiting = None
        self._free(self.bytes)

    def describe_full(self) -> str:
        """Say how much waits, and how much may wait."""
        return (
            f"{self.bytes} bytes wait to be read; one agent may have {UNREAD_OF_ONE}, or "
            f"{UNREAD_SURE} while those of all agents take {UNREAD_BYTES}"
        )

    def _free(self, size: int) -> None:
        self.bytes -= size
        self._shares.add(self._holder, -size)
