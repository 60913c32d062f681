"""Messages on their way out of one stream. Two tasks that write one stream kill it: one drains."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Outgoing(Generic[Item]):
    """A bounded queue for one writer; closing it drops what was not written."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._items: deque[Item] = deque()
        self._work = asyncio.Event()
        self._closed = False

    def put(self, item: Item) -> bool:
        """Queue an item; False means that the peer is too slow. Dropped once closed."""
        if self._closed:
            return True
        if len(self._items) >= self._most:
            return False
        self._items.append(item)
        self._work.set()
        return True

    def close(self) -> None:
        """Let drain return after the write that is under way."""
        self._closed = True
        self._work.set()

    async def drain(self, write: Callable[[Sequence[Item]], Awaitable[None]], most: int) -> None:
        """Write what waits in order until closed, up to ``most`` items at once."""
        while not self._closed:
            if self._items:
                count = min(most, len(self._items))
                await write([self._items.popleft() for _ in range(count)])
            else:
                self._work.clear()
                await self._work.wait()
