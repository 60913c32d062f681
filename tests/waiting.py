"""Waiting for what another task does, and time that does not count what a busy machine takes."""

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path


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


class Starved:
    """How long programs have waited for a processor, from now on: what a busy machine owes them."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        """Begin to count.

        Args:
            pids: The processes that are to be counted at that time; one that is started meanwhile
                counts from its start.
        """
        self._pids = pids
        self._before = {pid: _starved_seconds(pid) for pid in pids()}

    def seconds(self) -> float:
        """Return the sum of all threads of all processes."""
        return sum(_starved_seconds(pid) - self._before.get(pid, 0.0) for pid in self._pids())


def _starved_seconds(pid: int) -> float:
    nanoseconds = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            nanoseconds += int((thread / "schedstat").read_text(encoding="ascii").split()[1])
    return nanoseconds / 1e9
