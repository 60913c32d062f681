"""A queue of keys with the contract of client-go's.

A key that is queued twice is handed out once; a key that is queued while it is worked on is handed
out again afterwards, never to two workers at once. Delays lie in one heap with one timer.
"""

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from derops.backoff import back_off_seconds

Key = TypeVar("Key")
_STALE_ENTRIES = 1000


class WorkQueue(Generic[Key]):
    """Keys to work on. Lives in one event loop; no method but ``get`` waits."""

    def __init__(
        self,
        *,
        base_seconds: float = 0.05,
        limit_seconds: float = 60.0,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._base_seconds = base_seconds
        self._limit_seconds = limit_seconds
        self._jitter = jitter
        self._ready: deque[Key] = deque()
        self._dirty: set[Key] = set()
        self._working: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._some = asyncio.Event()
        self._turn = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def idle(self) -> bool:
        """Whether nothing is ready or being worked on."""
        return not self._ready and not self._working

    def add(self, key: Key) -> None:
        """Queue ``key`` now, unless it is queued already."""
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._ready.append(key)
            self._some.set()

    def add_after(self, key: Key, seconds: float) -> None:
        """Queue ``key`` after a delay; of several delays of one key the shortest counts."""
        if seconds <= 0:
            self.add(key)
            return
        due = asyncio.get_running_loop().time() + seconds
        if self._due.get(key, due + 1) <= due:
            return
        self._due[key] = due
        self._count += 1
        heapq.heappush(self._heap, (due, self._count, key))
        if len(self._heap) > 2 * len(self._due) + _STALE_ENTRIES:
            self._heap = [each for each in self._heap if self._due.get(each[2]) == each[0]]
            heapq.heapify(self._heap)
        self._arm()

    def add_failed(self, key: Key) -> float:
        """Queue ``key`` again after a back-off that doubles with each failure; return it."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        ceiling = back_off_seconds(failures, self._base_seconds, self._limit_seconds)
        seconds = ceiling * (0.5 + self._jitter() / 2)
        self.add_after(key, seconds)
        return seconds

    def forget(self, key: Key) -> None:
        """Say that ``key`` succeeded: its next back-off begins from the start."""
        self._failures.pop(key, None)

    async def get(self) -> Key:
        """Wait for a key; the caller must say ``done`` with it.

        In one turn of the loop one worker gets one: thousands of keys would keep all else waiting.
        """
        async with self._turn:
            await asyncio.sleep(0)
            while not self._ready:
                self._some.clear()
                await self._some.wait()
            key = self._ready.popleft()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: Key) -> None:
        """Say that the work on ``key`` ended, well or not."""
        self._working.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._some.set()

    def close(self) -> None:
        """Stop the timer; what was delayed is dropped."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _arm(self) -> None:
        if self._timer is not None:
            if self._heap and self._timer.when() == self._heap[0][0]:
                return
            self._timer.cancel()
            self._timer = None
        if self._heap:
            self._timer = asyncio.get_running_loop().call_at(self._heap[0][0], self._release)

    def _release(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._heap and self._heap[0][0] <= now:
            due, _, key = heapq.heappop(self._heap)
            if self._due.get(key) == due:
                del self._due[key]
                self.add(key)
        self._arm()


class Lanes(Generic[Key]):
    """Two queues, each with its own workers: no key of the first waits behind those of the other.

    Args:
        is_urgent: Tells whether a key belongs to the first.
    """

    def __init__(self, is_urgent: Callable[[Key], bool]) -> None:
        self._is_urgent = is_urgent
        self.urgent: WorkQueue[Key] = WorkQueue()
        self.other: WorkQueue[Key] = WorkQueue()

    def __len__(self) -> int:
        return len(self.urgent) + len(self.other)

    def add(self, key: Key) -> None:
        """Queue ``key`` now in its lane."""
        self._lane(key).add(key)

    def add_after(self, key: Key, seconds: float) -> None:
        """Queue ``key`` after a delay in its lane."""
        self._lane(key).add_after(key, seconds)

    def close(self) -> None:
        """Stop the timers; what was delayed is dropped."""
        self.urgent.close()
        self.other.close()

    def _lane(self, key: Key) -> WorkQueue[Key]:
        return self.urgent if self._is_urgent(key) else self.other
