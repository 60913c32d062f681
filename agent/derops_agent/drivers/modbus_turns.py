"""Whose request goes next on a connection."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from derops_agent.drivers.modbus_line import Turn

NO_TURN = "not asked, as others kept its line busy"
"""What the cancellation of a request says that still waited for its turn."""


class Turns:
    """A lock whose next holder is chosen when it is free, from all that wait then.

    Whoever gave it back may ask again before that: what reads a device in several requests is not
    put behind others after each.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: dict[asyncio.Future[None], Callable[[], Turn]] = {}

    @asynccontextmanager
    async def turn(self, rank: Callable[[], Turn]) -> AsyncIterator[None]:
        """Hold the lock; a caller that is cancelled while it waits never gets it.

        Raises:
            asyncio.CancelledError: With ``NO_TURN``, so that nobody says it did not answer.
        """
        if self._is_taken:
            given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting[given] = rank
            try:
                await given
            except asyncio.CancelledError:
                self._waiting.pop(given, None)
                if not given.cancelled():
                    self._give_back()  # it had just got it
                raise asyncio.CancelledError(NO_TURN) from None
        self._is_taken = True
        try:
            yield
        finally:
            self._give_back()

    def _give_back(self) -> None:
        asyncio.get_running_loop().call_soon(self._choose)

    def _choose(self) -> None:
        self._is_taken = bool(self._waiting)
        if self._waiting:
            chosen = min(self._waiting, key=lambda each: self._waiting[each]())
            del self._waiting[chosen]
            if chosen.cancelled():  # and its task did not run yet
                self._choose()
            else:
                chosen.set_result(None)
