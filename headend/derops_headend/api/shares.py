"""Scarce places, shared among callers: none gets all of them, and callers take turns."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

SHARE: ContextVar[str] = ContextVar("share", default="")
"""The share of the caller whose call is being answered; see ``Caller.share``."""


def may_take(held: int, free: int) -> bool:
    """Tell whether a holder of so many places may have one of those that are free.

    A holder of none may; another one may, if twice what it holds is less than what is free. So the
    last two places go to newcomers alone, and a holder that came when there was plenty gives places
    back before it gets more. Pure.
    """
    return free > 0 and (held == 0 or 2 * held < free)


class Places:
    """So many places at once. Whoever holds fewest is next; of equals, whoever waited longest."""

    def __init__(self, most: int) -> None:
        self._free = most
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        """By holder, in the order of their turns."""

    @asynccontextmanager
    async def hold(self, holder: str) -> AsyncIterator[None]:
        """Hold a place, as soon as it is the holder's turn."""
        await self._take(holder)
        try:
            yield
        finally:
            self._give_back(holder)

    def holds(self, holder: str) -> bool:
        """Tell whether a holder has a place."""
        return self._held[holder] > 0

    async def _take(self, holder: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(holder, deque()).append(turn)
        self._hand_out()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._leave(holder, turn)
            else:  # a place was handed out in the same step of the loop
                self._give_back(holder)
            raise

    def _give_back(self, holder: str) -> None:
        self._free += 1
        self._held[holder] -= 1
        if not self._held[holder]:
            del self._held[holder]
        self._hand_out()

    def _hand_out(self) -> None:
        while self._waiting and self._free:
            least = min(self._waiting, key=self._held.__getitem__)
            if not may_take(self._held[least], self._free):
                return
            waiting = self._waiting.pop(least)
            turn = waiting.popleft()
            if waiting:  # its next turn is after those of the others
                self._waiting[least] = waiting
            if turn.cancelled():  # in this same step of the loop
                continue
            self._free -= 1
            self._held[least] += 1
            turn.set_result(None)

    def _leave(self, holder: str, turn: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(holder, deque())
        if turn in waiting:
            waiting.remove(turn)
            if not waiting:
                del self._waiting[holder]
