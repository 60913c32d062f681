"""Looks at what lies behind all agents, and tells the operator. Off the way of any stream."""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from derops.rates import Rates
from derops.wire.v1 import control_pb2
from derops_headend.eventlog.words import WordUnavailableError, WriterWords
from derops_headend.fleet.headend_path import (
    HeadendPath,
    WordsHeard,
    judge_database,
    judge_log,
    judge_writer,
)

LOOK_SECONDS = 5.0
_LOGGED_EVERY_SECONDS = 60.0


class HeadendWatch:
    """What this replica can judge of log, writer and database."""

    def __init__(
        self,
        words: WriterWords,
        shards: Sequence[int],
        fill: Callable[[], float],
        now_us: Callable[[], int],
        tell: Callable[[control_pb2.HeadendState], None],
    ) -> None:
        """Make it; ``run`` looks.

        Args:
            words: Where writers leave word.
            shards: All of the log.
            fill: Returns the share of the log's bound that is taken.
            now_us: The wall clock.
            tell: Called with how all links stand when another reason holds for one.
        """
        self._words, self._fill = words, fill
        self._now_us, self._tell = now_us, tell
        self._heard = WordsHeard(shards, time.monotonic())
        self._path = HeadendPath()
        self._lines = Rates(per_second=1 / _LOGGED_EVERY_SECONDS, burst=1.0)
        self._log = structlog.get_logger("gateway")
        self.log_failure = ""
        """Why the log does not take what arrives; empty = it does."""

    async def run(self) -> None:
        """Look until cancelled, whatever fails."""
        while True:
            try:
                await self.look()
            except Exception:
                if self._lines.admit("look", time.monotonic()) is not None:
                    self._log.exception("headend.not_judged")
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look once, and tell if there is news."""
        try:
            found = await self._words.read(self._heard.shards)
        except WordUnavailableError as error:
            if self._lines.admit("word", time.monotonic()) is not None:
                self._log.warning("word.not_read", why=str(error))
        else:
            self._heard.hear(found, time.monotonic())
        self.judge()

    def judge(self) -> None:
        """Judge by what is known, and tell if there is news."""
        now_seconds, now_us = time.monotonic(), self._now_us()
        words = self._heard.fresh(now_seconds)
        judgements = (
            judge_log(self.log_failure, self._fill(), words),
            judge_writer(self._heard, now_seconds, now_us),
            judge_database(words, now_us),
        )
        if self._path.take(judgements, now_us):
            self._tell(self._path.message(now_us))

    def state(self) -> control_pb2.HeadendState:
        """Return how the links stood when they were last looked at."""
        return self._path.message(self._now_us())
