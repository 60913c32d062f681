"""Waiting for what another task does, and time that does not count what a busy machine takes."""

import asyncio
import selectors
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""With what only a busy machine delays: it costs nothing where all is well."""


async def until(look: Callable[[], object], patience_seconds: float = 60.0) -> None:
    """Look again and again, until there is something to see."""
    async with asyncio.timeout(patience_seconds):
        while not look():
            await asyncio.sleep(0.01)


def eventually(
    look: Callable[[], T | None], what: str = "", patience_seconds: float = PATIENCE_SECONDS
) -> T:
    """Return the first truthy answer of ``look``, for tests that have no loop.

    It looks often at first, and ten times a second at last: a look may start a program.
    """
    deadline = time.monotonic() + patience_seconds
    pause_seconds = 0.01
    while True:
        seen = look()
        if seen:
            return seen
        assert time.monotonic() < deadline, (
            f"{what or 'what was looked for'}: not within {patience_seconds} s"
        )
        time.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 1.2, 0.1)


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
    """How long threads have waited for a processor, from now on: what a busy machine owes them."""

    def __init__(self, threads: Callable[[], Iterable[int]]) -> None:
        """Begin to count.

        Args:
            threads: The threads that are to be counted at that time, by their ids; that of a
                process is its main thread's. One that is started meanwhile counts from its start.
        """
        self._threads = threads
        self._before = {thread: _starved_seconds(thread) for thread in threads()}

    def seconds(self) -> float:
        """Return the sum of all threads."""
        return sum(
            _starved_seconds(thread) - self._before.get(thread, 0.0) for thread in self._threads()
        )


def _starved_seconds(thread: int) -> float:
    told = Path(f"/proc/{thread}/schedstat").read_text(encoding="ascii")
    return int(told.split()[1]) / 1e9
