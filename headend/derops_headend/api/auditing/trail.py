"""The audit of one replica: each record is durable here first, then goes to the database."""

import asyncio
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import psycopg

from derops_headend.api.auditing import record
from derops_headend.api.auditing.file import AuditFile
from derops_headend.api.auditing.remembering import Key, Memory, choose
from derops_headend.api.call import Call
from derops_headend.api.ports import Used
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.gateway.group_commit import GroupCommit

DEFAULT_MAX_BYTES = 1024**3
MAX_GROUP_BYTES = 1024 * 1024
READS_SHARE = 0.9
"""Of the file's bound, beyond which only changes are taken: those that were announced."""

_AGAIN_SECONDS = 10
_ADDED_BYTES = 512
"""What chain and file add to a record, at most."""


@dataclass(slots=True)
class _Waiting:
    """A record on its way into the file."""

    facts: str
    error: OSError | None = field(default=None)


class AuditTrail:
    """Implements the port ``Audit``; ``start`` before use, ``close`` at the end."""

    def __init__(self, file: AuditFile, *, max_bytes: int, now: Callable[[], datetime]) -> None:
        """Take a file; use ``open``."""
        self._file, self._max_bytes, self._now = file, max_bytes, now
        self._memory = Memory()
        self._executor = ThreadPoolExecutor(1, "audit-file")
        self._commit: GroupCommit[_Waiting] = GroupCommit(
            self._write, size=lambda each: len(each.facts) + _ADDED_BYTES, most=MAX_GROUP_BYTES
        )
        self._queued_bytes = 0
        self._open_calls: set[str] = set()
        """Requests that were announced and are not completed: room is kept for that."""
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        replica: str,
        max_bytes: int = DEFAULT_MAX_BYTES,
        connect: Callable[[], psycopg.Connection],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Self:
        """Open the audit of a replica in a directory of its own.

        Args:
            directory: Made if it is not there.
            replica: Begins the name of the chain.
            max_bytes: Bound on the records that wait for the database.
            connect: Makes a connection of the role ``derops_api``, in autocommit mode.
            now: The wall clock, UTC.

        Raises:
            OSError: The directory cannot be used, or another process uses it.
        """
        return cls(AuditFile(directory, replica=replica, now=now()), max_bytes=max_bytes, now=now)

    async def start(self) -> None:
        """Begin: what an earlier process left is gone on with."""
        self._memory.note_stored(self._file.scan())
        self._tasks = [asyncio.create_task(self._commit.run())]

    async def close(self) -> None:
        """Write what waits, and end."""
        self._commit.close()
        await asyncio.gather(*self._tasks)
        self._executor.shutdown()
        self._file.close()

    async def announce(self, call: Call) -> None:
        """Write down that a change is about to be made; return once that is durable.

        Raises:
            ProblemError: AUDIT_UNAVAILABLE: then nothing may be done.
        """
        kept = (len(self._open_calls) + 1) * record.MAX_RECORD_BYTES
        at = self._now()
        facts = record.announced(call, at)
        await self._put(facts, self._max_bytes - kept)
        self._open_calls.add(call.request_id)
        self._memory.note(json.loads(facts), at)

    async def complete(self, call: Call, status: int, reason: str, sent_bytes: int) -> None:
        """Write down what was answered; return once that is durable.

        Raises:
            ProblemError: AUDIT_UNAVAILABLE: then a read is not answered.
        """
        at = self._now()
        facts = record.completed(call, at, status, reason, sent_bytes)
        if call.request_id not in self._open_calls:
            await self._put(facts, int(READS_SHARE * self._max_bytes))
            return
        self._open_calls.remove(call.request_id)
        await self._put(facts, self._max_bytes)
        self._memory.note(json.loads(facts), at)

    async def refused(self, source: str, reason: str, method: str, path: str) -> None:
        """Write down that a stranger was refused; many of one source may become one record."""
        facts = record.refused(self._now(), source, reason, method, path)
        await self._put(facts, int(READS_SHARE * self._max_bytes))

    async def find_key(
        self, caller_name: str, namespace: str, idempotency_key_sha256: str
    ) -> Used | None:
        """Return what a key was used for within 30 days, by any replica; None = for nothing.

        Raises:
            ProblemError: DATABASE_UNAVAILABLE: it cannot be known.
        """
        key = Key(caller_name, namespace, idempotency_key_sha256)
        return choose(self._memory.find(key).values())

    async def _put(self, facts: str, limit: int) -> None:
        size = len(facts) + _ADDED_BYTES
        if self._file.size + self._queued_bytes + size > limit:
            raise _unavailable("the audit's file is full: the database takes no records")
        waiting = _Waiting(facts)
        self._queued_bytes += size
        try:
            await asyncio.shield(self._commit.put(waiting))
        finally:
            self._queued_bytes -= size
        if waiting.error is not None:
            raise _unavailable("the audit's file cannot be written") from waiting.error

    async def _write(self, group: Sequence[_Waiting]) -> None:
        facts: list[Any] = [each.facts for each in group]
        try:
            await asyncio.get_running_loop().run_in_executor(
                self._executor, self._file.append, facts
            )
        except OSError as error:  # whoever waits is told, and may come again
            for each in group:
                each.error = error


def _unavailable(why: str) -> ProblemError:
    return ProblemError(Slug.AUDIT_UNAVAILABLE, why, retry_after_seconds=_AGAIN_SECONDS)
