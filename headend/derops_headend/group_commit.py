"""Many waiters, one write: what arrives while a write is under way goes into the next."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from time import perf_counter
from typing import Generic, TypeVar

import structlog

from derops.backoff import back_off_seconds

_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.05, 2.0

Item = TypeVar("Item")
Settle = Callable[[BaseException | None], object]


class GroupCommit(Generic[Item]):
    """Writes items in the order they came, in groups of bounded size.

    A write that fails is tried again until it succeeds. So it waits for a full disk, and items keep
    their order.

    Args:
        write: Returns when a group is durable.
        size: Weight of one item.
        most: Bound on the weight of a group.
        observe: Is given the seconds of each write.
        on_failure: Gets why writes fail now, and an empty text once they succeed again.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Item]], Awaitable[object]],
        *,
        size: Callable[[Item], int] = lambda _: 1,
        most: int = 1000,
        observe: Callable[[float], object] = lambda _: None,
        on_failure: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.write, self._size, self._most, self._observe = write, size, most, observe
        self._on_failure = on_failure
        self._queue: deque[tuple[Item, Settle]] = deque()
        self._work, self._closing = asyncio.Event(), asyncio.Event()
        self._begun: float | None = None
        self._log = structlog.get_logger("commit")

    @property
    def seconds_under_way(self) -> float:
        """For how long the write that is under way has been tried; 0 = there is none."""
        return perf_counter() - self._begun if self._begun is not None else 0.0

    @property
    def waiting(self) -> int:
        """Items that are not being written yet."""
        return len(self._queue)

    def put(self, item: Item) -> asyncio.Future[None]:
        """Queue an item; the future is done once it is durable, or fails when it never will be."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def settle(error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            elif isinstance(error, asyncio.CancelledError):
                future.cancel()
            else:
                future.set_exception(error)
                future.exception()  # not everybody waits, and run has logged it

        self.add(item, settle)
        return future

    def add(self, item: Item, settle: Settle) -> None:
        """Queue an item; ``settle`` is called once it is durable, or with why it never will be.

        The items of one write are settled in one step of the loop, in their order, so that what
        follows from them can be done once for all. ``settle`` must not raise.
        """
        self._queue.append((item, settle))
        self._work.set()

    async def run(self) -> None:
        """Write groups until closed and empty. One task runs this."""
        while self._queue or not self._closing.is_set():
            if not self._queue:
                self._work.clear()
                await self._work.wait()
                continue
            group, self._begun = self._take_group(), perf_counter()
            try:
                await self._write_group(group)
            except asyncio.CancelledError as error:
                _settle(group, error)
                raise
            finally:
                self._begun = None

    def close(self) -> None:
        """Let ``run`` return once all is written; a write that fails then is not tried again."""
        self._closing.set()
        self._work.set()

    def _take_group(self) -> list[tuple[Item, Settle]]:
        group = [self._queue.popleft()]
        weight = self._size(group[0][0])
        while self._queue:
            weight += self._size(self._queue[0][0])
            if weight > self._most:
                break
            group.append(self._queue.popleft())
        return group

    async def _write_group(self, group: list[tuple[Item, Settle]]) -> None:
        items, failures = [item for item, _ in group], 0
        while True:
            begun = perf_counter()
            try:
                await self.write(items)
                break
            except Exception as error:
                why = f"{type(error).__name__}: {error}"
                if not failures:
                    self._log.error("commit.failed", items=len(group), why=why)
                self._on_failure(why)
                if self._closing.is_set():
                    _settle(group, error)
                    return
            await self._pause(back_off_seconds(failures, _FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS))
            failures += 1
        if failures:
            self._log.info("commit.recovered", items=len(group))
            self._on_failure("")
        self._observe(perf_counter() - begun)
        _settle(group, None)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not once closed."""
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return


def _settle(group: Iterable[tuple[object, Settle]], error: BaseException | None) -> None:
    for _, settle in group:
        settle(error)
