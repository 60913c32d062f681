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

    def reserve(self) -> float:
        """Take a token, on credit if there is none; return the seconds to wait before using it."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    async def take(self) -> None:
        """Wait for a token."""
        await asyncio.sleep(self.reserve())
