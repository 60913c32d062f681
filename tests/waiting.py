"""Waiting for what another task does, and time that does not count what a busy machine takes."""

import asyncio
import selectors
import threading
import time
from collections.abc import Callable


async def until(look: Callable[[], object], patience_seconds: float = 60.0) -> None:
    """Look again and again, until there is something to see."""
    async with asyncio.timeout(patience_seconds):
        while not look():
            await asyncio.sleep(0.01)


class _Selector(selectors.DefaultSelector):
    """It counts how long it waited, and no moment longer than it was asked to."""

    waited_seconds = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        began = time.monotonic()
        events = super().select(timeout)
        waited_seconds = time.monotonic() - began
        if timeout is not None:
            waited_seconds = min(waited_seconds, max(timeout, 0.0))
        self.waited_seconds += waited_seconds
        return events


class PatientLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes while it waits and while it computes.

    It stands still while other programs have the processor. On a machine with nothing else to do
    this is the time of the clock. On a busy one a time-out of a test's loop is still missed by
    what does not answer, and not by what did not get its turn.
    """

    def __init__(self) -> None:
        self._patient = _Selector()
        self._processor = time.pthread_getcpuclockid(threading.get_ident())
        self._base_seconds = time.monotonic() - time.clock_gettime(self._processor)
        super().__init__(self._patient)

    def time(self) -> float:
        """Return seconds that grow, of which only differences mean anything."""
        computed_seconds = time.clock_gettime(self._processor)
        return self._base_seconds + computed_seconds + self._patient.waited_seconds


def now() -> float:
    """Return the time of the running loop, in seconds."""
    return asyncio.get_running_loop().time()
