"""Leaves the word of a process's writers, from a thread of its own: storing never waits for it."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

import structlog

from derops.rates import Rates
from derops_headend.eventlog.words import WordUnavailableError, WriterWords
from derops_headend.writing.notes import WriterNotes
from derops_headend.writing.word import WriterWord

LEFT_EVERY_SECONDS = 5.0
LEFT_AGAIN_SECONDS = 1.0
"""How soon after the last word another fault is told."""

DEAD_AFTER_SECONDS = 2 * LEFT_EVERY_SECONDS
"""How long the word of another process stays unchanged before that process counts as gone."""

LOGGED_EVERY_SECONDS = 60.0


class SpeakingTurns:
    """Tells when a writer may speak, so that one that stands by does not contradict the active one.

    One that stores may speak at once. One with a fault waits until the word of another process has
    not changed for some time: a writer that died leaves a word that stays.
    """

    def __init__(self) -> None:
        self._seen: dict[int, tuple[WriterWord, float]] = {}

    def may_speak(self, word: WriterWord, present: WriterWord | None, now_seconds: float) -> bool:
        """Tell whether ``word`` may take the place of the present one of its shard."""
        if word.fault is None or present is None or present.writer == word.writer:
            return True
        before, since = self._seen.get(word.shard, (None, now_seconds))
        if present != before:
            self._seen[word.shard] = (present, now_seconds)
            return False
        return now_seconds - since >= DEAD_AFTER_SECONDS


class WordLeaver:
    """The thread; it ends when ``stopping`` is set, or soon after."""

    def __init__(
        self,
        open_words: Callable[[], WriterWords],
        notes: Sequence[WriterNotes],
        changed: threading.Event,
        stopping: threading.Event,
    ) -> None:
        """Prepare.

        Args:
            open_words: Opens the place where word is left; called in the thread.
            notes: Of all writers of this process.
            changed: Set when one of them has another fault, or none any more.
            stopping: Ends the thread.
        """
        self._open_words, self._notes = open_words, notes
        self._changed, self._stopping = changed, stopping
        self._turns = SpeakingTurns()
        self._lines = Rates(per_second=1 / LOGGED_EVERY_SECONDS, burst=1.0)
        self._log = structlog.get_logger("writer")
        self.thread = threading.Thread(
            target=lambda: asyncio.run(self._run()), name="word", daemon=True
        )

    def stop(self) -> None:
        """Wake the thread, so that it sees that it is to end."""
        self._changed.set()

    async def _run(self) -> None:
        words = self._open_words()
        try:
            while not self._stopping.is_set():
                await self._leave_all(words)
                await asyncio.to_thread(self._pause)
        finally:
            with suppress(Exception):
                await words.close()

    def _pause(self) -> None:
        """Wait for the next turn; a change comes sooner, and not too soon."""
        self._stopping.wait(LEFT_AGAIN_SECONDS)
        if not self._stopping.is_set():
            self._changed.wait(LEFT_EVERY_SECONDS - LEFT_AGAIN_SECONDS)
        self._changed.clear()

    async def _leave_all(self, words: WriterWords) -> None:
        taken = [word for notes in self._notes if (word := notes.take_word()) is not None]
        if not taken:
            return
        try:
            await self._speak(words, taken)
        except Exception as error:  # whatever it is, data is stored without it
            if self._lines.admit("word", time.monotonic()) is not None:
                is_foreseen = isinstance(error, WordUnavailableError)
                self._log.warning("word.not_left", why=str(error), exc_info=not is_foreseen)

    async def _speak(self, words: WriterWords, taken: Sequence[WriterWord]) -> None:
        present = await words.read([word.shard for word in taken])
        for word in taken:
            if self._turns.may_speak(word, present.get(word.shard), time.monotonic()):
                await words.leave(word)
