"""How fast the operator may call the API server for one purpose."""

import asyncio
import time
from collections.abc import Callable


class TokenBucket:
    """Lets ``rate`` calls a second through, and ``burst`` at once."""

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled = clock()
        self._spared = self._filled
        """When a token was last taken from what is to spare."""

    def reserve(self) -> float:
        """Take a token, on credit if there is none; return the seconds to wait before using it."""
        self._fill()
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    def reserve_spare(self, kept: float, least_rate: float) -> float:
        """Take a token if ``kept`` stay for others.

        Returns the seconds after which to ask again; 0 = it is taken.
        ``least_rate`` a second are taken all the same, on credit, however many others take.
        """
        now = self._fill()
        waits = min((kept + 1 - self._tokens) / self._rate, self._spared + 1 / least_rate - now)
        if waits > 0:
            return waits
        self._spared = now
        self._tokens -= 1
        return 0.0

    async def take(self) -> None:
        """Wait for a token."""
        await asyncio.sleep(self.reserve())

    async def take_spare(self, kept: float, least_rate: float) -> None:
        """Wait for a token that is to spare."""
        while seconds := self.reserve_spare(kept, least_rate):  # noqa: ASYNC110  # no event tells
            await asyncio.sleep(seconds)

    def _fill(self) -> float:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return now
