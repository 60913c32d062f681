"""What one agent has not read yet; together they take no more memory than they may."""

from collections import deque

from derops.wire.v1 import agent_pb2
from derops_headend.fleet.shares import Shares

_KIB, _MIB = 1024, 1024**2

UNREAD_BYTES, UNREAD_OF_ONE, UNREAD_SURE = 64 * _MIB, 256 * _KIB, 16 * _KIB
"""What agents do not read: of all, of one, and what each may have anyway."""

_WEIGHT_OF_ANSWER = 256
"""Bytes of a message to an agent, beside its own: fewer than what OVERHEAD_BYTES reckons with."""

Item = agent_pb2.GatewayMessage | str
"""A message, or the uid of a dispatch, which is written in the state it has by then."""


class UnreadQueue:
    """First in, first out. An empty one costs no queue.

    Args:
        shares: What all agents do not read.
        holder: The uid of the agent's asset.
    """

    __slots__ = ("_holder", "_shares", "_waiting", "bytes")

    def __init__(self, shares: Shares, holder: str) -> None:
        self._shares, self._holder = shares, holder
        self._waiting: deque[tuple[Item, int]] | None = None
        self.bytes = 0

    def put(self, item: Item) -> bool:
        """Add an item where there is room for it; tell whether there was."""
        size = _WEIGHT_OF_ANSWER + (0 if isinstance(item, str) else item.ByteSize())
        if not self._shares.take(self._holder, size):
            return False
        if self._waiting is None:
            self._waiting = deque()
        self.bytes += size
        self._waiting.append((item, size))
        return True

    def take(self) -> Item | None:
        """Return what is to be written next; None where nothing waits."""
        if not self._waiting:
            return None
        item, size = self._waiting.popleft()
        self._free(size)
        return item

    def clear(self) -> None:
        """Drop what waits."""
        self._waiting = None
        self._free(self.bytes)

    def _free(self, size: int) -> None:
        self.bytes -= size
        self._shares.add(self._holder, -size)
