"""How long a command may take, all its calls together."""

import time
from collections.abc import Callable


class Deadline:
    """An end for all calls of a command; none waits beyond it."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends = clock() + seconds

    def left(self, share: float = 1.0) -> float:
        """Return the seconds that a call may take: a share of what is left, a moment at least."""
        return max(0.05, (self._ends - self._clock()) * share)
