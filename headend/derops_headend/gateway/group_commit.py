"""Many waiters, one write: what arrives while a write is under way goes into the next."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Generic, TypeVar

import structlog

Item = TypeVar("Item")


class GroupCommit(Generic[Item]):
    """Writes items in the order they came, in groups of bounded size.

    Args:
        write: Returns when a group is durable.
        size: Weight of one item.
        most: Bound on the weight of a group.
        observe: Is given the seconds of each write.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[object]],
        *,
        size: Callable[[Item], int] = lambda _: 1,
        most: int = 1000,
        observe: Callable[[float], object] = lambda _: None,
    ) -> None:
        self._write, self._size, self._most, self._observe = write, size, most, observe
        self._waiting: deque[tuple[Item, asyncio.Future[None]]] = deque()
        self._work = asyncio.Event()
        self._closing = False

    def put(self, item: Item) -> asyncio.Future[None]:
        """Queue an item; the future is done once it is durable, or fails with its group."""
        future = asyncio.get_running_loop().create_future()
        # Not everybody waits: an unobserved failure is logged once, by run.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting.append((item, future))
        self._work.set()
        return future

    async def run(self) -> None:
        """Write groups until closed and empty. One task runs this."""
        while self._waiting or not self._closing:
            if not self._waiting:
                self._work.clear()
                await self._work.wait()
                continue
            group = self._take_group()
            try:
                await self._write_group(group)
            except asyncio.CancelledError:
                for _, future in group:
                    future.cancel()
                raise

    def close(self) -> None:
        """Let run return once all is written."""
        self._closing = True
        self._work.set()

    def _take_group(self) -> list[tuple[Item, asyncio.Future[None]]]:
        group = [self._waiting.popleft()]
        weight = self._size(group[0][0])
        while self._waiting:
            weight += self._size(self._waiting[0][0])
            if weight > self._most:
                break
            group.append(self._waiting.popleft())
        return group

    async def _write_group(self, group: list[tuple[Item, asyncio.Future[None]]]) -> None:
        begun = perf_counter()
        try:
            await self._write([item for item, _ in group])
        except Exception as error:
            # Whatever the disk says: nothing of this group may be acknowledged.
            structlog.get_logger("commit").error("commit.failed", items=len(group), exc_info=True)
            for _, future in group:
                if not future.done():
                    future.set_exception(error)
            return
        self._observe(perf_counter() - begun)
        for _, future in group:
            if not future.done():
                future.set_result(None)
