"""What a writer notes of its work, and the word that follows from it.

The writer's thread notes, another one reads: a note never waits.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from derops.data_path import SharedFault
from derops_headend.writing.word import WriterWord

UNANSWERED_SECONDS = 20.0
"""How long one call to the database may last before that is a fault."""


class WriterNotes:
    """The notes of one writer."""

    def __init__(
        self,
        shard: int,
        writer: str,
        now_us: Callable[[], int],
        monotonic: Callable[[], float],
        on_change: Callable[[], object] = lambda: None,
    ) -> None:
        """Begin with nothing noted.

        Args:
            shard: The shard that the writer follows.
            writer: The name of its process.
            now_us: The wall clock.
            monotonic: Seconds that are not set.
            on_change: Called when another fault holds, or none any more.
        """
        self._shard, self._writer = shard, writer
        self._now_us, self._monotonic, self._on_change = now_us, monotonic, on_change
        self._lock = threading.Lock()
        self._committed: int | None = None
        self._last = self._waiting_since_us = 0
        self._fault: SharedFault | None = None
        self._message = ""
        self._since_us = 0
        self._asking_since: float | None = None
        self._is_new = self._has_noted = False

    @property
    def committed(self) -> int | None:
        """The offset that is in the database, as far as that is known."""
        return self._committed

    def note_place(self, committed: int, last: int, waiting_since_us: int) -> None:
        """Note that log and database answer, and where the writer stands.

        Args:
            committed: The offset that is in the database.
            last: Of the last record of the log that was seen.
            waiting_since_us: When the next record to store was received; 0 = there is none.
        """
        with self._lock:
            self._committed, self._last = committed, max(last, committed)
            self._waiting_since_us = waiting_since_us
            self._is_new = self._has_noted = True
            changed = self._set_fault(None, "")
        if changed:
            self._on_change()

    def note_fault(
        self, fault: SharedFault, message: str, last: int = 0, waiting_since_us: int = 0
    ) -> None:
        """Note what is broken; 0 = what was known of the log stays."""
        with self._lock:
            self._last = last or self._last
            self._waiting_since_us = waiting_since_us or self._waiting_since_us
            self._is_new = self._has_noted = True
            changed = self._set_fault(fault, message)
        if changed:
            self._on_change()

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Do a call to the database that may not return for long."""
        self._asking_since = self._monotonic()
        try:
            yield
        finally:
            self._asking_since = None

    def take_word(self) -> WriterWord | None:
        """Return what is to be said now; None = the writer has noted nothing since."""
        with self._lock:
            asking_since = self._asking_since
            seconds = self._monotonic() - asking_since if asking_since is not None else 0.0
            if seconds >= UNANSWERED_SECONDS:
                words = f"a call to it has not returned for {seconds:.0f} s"
                self._set_fault(SharedFault.DATABASE_FAILING, words)
            elif not self._is_new and (asking_since is None or not self._has_noted):
                return None
            self._is_new = False
            return WriterWord(
                shard=self._shard,
                writer=self._writer,
                committed=self._committed,
                last=self._last,
                waiting_since_us=self._waiting_since_us,
                fault=self._fault,
                message=self._message,
                since_us=self._since_us,
                left_us=self._now_us(),
            )

    def _set_fault(self, fault: SharedFault | None, message: str) -> bool:
        changed = fault is not self._fault
        if changed:
            self._since_us = self._now_us() if fault is not None else 0
        self._fault, self._message = fault, message
        return changed
