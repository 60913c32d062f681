"""The loop that makes telemetry durable once a second."""

import asyncio
import sqlite3
from typing import Any

import structlog

from derops.observability import Readiness
from derops_agent.storage import Threads
from derops_agent.telemetry.outbox import Trouble
from derops_agent.telemetry.outbox_store import OutboxStore, is_damaged

FLUSH_SECONDS = 1.0
_OUTBOX = "outbox"


class Flusher:
    """Makes samples durable, at the latest a second after they were taken."""

    def __init__(self, store: OutboxStore, threads: Threads, readiness: Readiness) -> None:
        self.store = store
        """Whose samples they are."""

        self._threads, self._readiness = threads, readiness
        self._work: list[Any] = []
        self._log = structlog.get_logger("outbox")

    async def run(self) -> None:
        """Flush for ever; try again on a disk that fails, and replace a damaged file."""
        while True:
            try:
                async with asyncio.timeout(FLUSH_SECONDS):
                    await self.store.awaits_flush.wait()
            except TimeoutError:
                pass
            self.store.awaits_flush.clear()
            try:
                await self.flush()
            except sqlite3.Error as error:
                await self._recover(error)
            else:
                if self.store.trouble is not None:
                    self.store.trouble = None
                    self._readiness.found(_OUTBOX)
                    self._log.info("outbox.commit_recovered")

    async def _recover(self, error: sqlite3.Error) -> None:
        self._readiness.degraded(_OUTBOX, str(error))
        if self.store.trouble is None:
            now_seconds = asyncio.get_running_loop().time()
            self.store.trouble = Trouble(str(error), now_seconds)
            self._log.error("outbox.commit_failed", why=str(error))
        if is_damaged(error):
            ids = await self._threads.run_outbox(self.store.replace, error)
            self._work = []
            self.store.begin_anew(ids)

    async def flush(self) -> None:
        """Commit what the outboxes have.

        Raises:
            sqlite3.Error: The disk did not take it; it is kept for the next time. Newer samples
                wait in the outboxes until then, which have a bound.
        """
        if not self._work:
            self._work = self.store.collect()
        work = self._work
        shortened = await self._threads.run_outbox(self.store.commit, work)
        self._work = []
        self.store.finish(work, shortened)
