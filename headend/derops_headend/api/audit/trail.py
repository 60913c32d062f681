"""The audit of one replica: each record is durable here first, then goes to the database."""

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from derops.observability import Readiness
from derops_headend.api.audit import metrics, record
from derops_headend.api.audit.file import AuditFile
from derops_headend.api.audit.keys import AnnouncedKeys, IdempotencyKey, choose
from derops_headend.api.audit.lookup import KEY_DAYS, KeyLookup
from derops_headend.api.audit.refusals import OTHERS, Refusals, Who
from derops_headend.api.audit.sink import Connect, Sink
from derops_headend.api.call import Call
from derops_headend.api.ports import Used
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.sources import network_of
from derops_headend.group_commit import GroupCommit
from derops_headend.storage.chain import ChainedRecord, Head

DEFAULT_MAX_BYTES = 1024**3
MAX_GROUP_BYTES = 1024 * 1024
READS_SHARE, STRANGERS_SHARE = 0.9, 0.5
"""Of the file's bound: beyond, only changes that were announced are taken; and beyond, strangers
are told in one sum."""

KEY_SECONDS = 5.0
"""How long a change with an Idempotency-Key waits until the database shows it to all replicas."""

SUM_SECONDS, HEAD_SECONDS, STOP_SECONDS = 10, 60, 3.0
FILE = "audit's file"
_AGAIN_SECONDS = 10
_ADDED_BYTES = 512
"""The most bytes that chain and file add to a record."""


@dataclass(slots=True)
class _Waiting:
    """A record on its way into the file."""

    facts: str
    head: Head | None = None
    """What it became."""

    error: OSError | None = field(default=None)


class AuditTrail:
    """Implements the port ``Audit``; ``start`` before use, ``close`` at the end."""

    def __init__(
        self,
        file: AuditFile,
        *,
        max_bytes: int,
        connect: Connect,
        readiness: Readiness,
        now: Callable[[], datetime],
    ) -> None:
        """Take a file; use ``open``."""
        self.file, self._max_bytes, self._now = file, max_bytes, now
        self._readiness = readiness
        self.announced = AnnouncedKeys()
        self._strangers, self._callers = Refusals(), Refusals()
        self._executor = ThreadPoolExecutor(1, "audit-file")
        self._asking = KeyLookup(connect)
        self.sink = Sink(file, connect, readiness, self._on_stored)
        self._commit: GroupCommit[_Waiting] = GroupCommit(
            self._write,
            size=lambda each: len(each.facts) + _ADDED_BYTES,
            most=MAX_GROUP_BYTES,
            observe=metrics.APPEND_SECONDS.observe,
        )
        self._queued_bytes = 0
        self._open_calls: set[str] = set()
        """Requests that were announced and are not completed: room is kept for that."""
        self._on_their_way: dict[tuple[str, int], asyncio.Future[None]] = {}
        """Records that are awaited in the database."""
        self._stored_at = now()
        self._behind_since: datetime | None = None

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        replica: str,
        max_bytes: int = DEFAULT_MAX_BYTES,
        connect: Connect,
        readiness: Readiness | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> Self:
        """Open the audit of a replica in a directory of its own.

        Args:
            directory: Made if it is not there.
            replica: Begins the name of the chain.
            max_bytes: Bound on the records that wait for the database.
            connect: Makes a connection of the role ``derops_api``, in autocommit mode.
            readiness: Is told while the file or the database takes nothing.
            now: The wall clock, UTC.

        Raises:
            OSError: The directory cannot be used, or another process uses it.
            SchemaTooNewError: Its files are for newer programs.
        """
        file = AuditFile(directory, replica=replica, now=now())
        return cls(
            file,
            max_bytes=max_bytes,
            connect=connect,
            readiness=readiness or Readiness(),
            now=now,
        )

    async def start(self) -> None:
        """Begin; go on with the records that an earlier process left."""
        self._loop = asyncio.get_running_loop()
        self.announced.note_stored(self.file.scan())
        self._writing = asyncio.create_task(self._commit.run())
        self._ticking = asyncio.create_task(self._tick())
        self.sink.start()
        previous = self.file.previous
        facts = {
            "verb": "open",
            "resource": "audits",
            "cutBytes": self.file.cut_bytes or None,
            "previous": previous and previous._asdict(),
        }
        await self._try_put(record.opened(self._now(), facts))

    async def close(self) -> None:
        """Write the records that wait, move those that can be moved, and end."""
        self._ticking.cancel()
        await self.sum_up()
        self._commit.close()
        await self._writing
        await self._loop.run_in_executor(None, self.sink.stop, STOP_SECONDS)
        self.say_head()
        self._executor.shutdown()
        self._asking.close()
        self.file.close()

    async def announce(self, call: Call) -> None:
        """Write down that a change is about to be made; return once that is durable.

        A change with an Idempotency-Key is in the database by then: the next call may reach another
        replica.

        Raises:
            ProblemError: AUDIT_UNAVAILABLE, or DATABASE_UNAVAILABLE for one with a key: then
                nothing may be done.
        """
        has_key = bool(call.subject.idempotency_key_sha256)
        if has_key and not self.sink.connected:
            raise _database_unavailable()
        at = self._now()
        facts = record.announced(call, at)
        self._open_calls.add(call.request_id)
        kept = len(self._open_calls) * record.MAX_RECORD_BYTES
        try:
            head = await self._put(facts, self._max_bytes - kept)
        except ProblemError:
            self._open_calls.discard(call.request_id)
            raise
        call.is_announced = True
        self.announced.note(json.loads(facts), at)
        if not has_key:
            return
        try:
            await asyncio.wait_for(self._until_stored(head), KEY_SECONDS)
        except TimeoutError:
            await self._try_put(record.withdrawn(call, self._now()))
            self.announced.drop(call.request_id)
            raise _database_unavailable() from None

    async def complete(self, call: Call, status: int, reason: str, sent_bytes: int) -> None:
        """Write down what was answered; return once that is durable.

        Raises:
            ProblemError: AUDIT_UNAVAILABLE: then a read is not answered.
        """
        at = self._now()
        facts = record.completed(call, at, status, reason, sent_bytes)
        if call.request_id not in self._open_calls:
            await self._put(facts, READS_SHARE * self._max_bytes)
            return
        self._open_calls.remove(call.request_id)
        await self._put(facts, self._max_bytes)
        self.announced.note(json.loads(facts), at)

    async def refused(self, source: str, reason: str, method: str, path: str) -> None:
        """Record that a stranger was refused; many refusals of one source may become one record."""
        now, network = self._now(), network_of(source)
        has_room = self._has_room(STRANGERS_SHARE * self._max_bytes)
        if has_room and self._strangers.admit(network, now):
            facts = record.refused(now, source, reason, method, path)
            if await self._try_put(facts):
                return
        metrics.SUMMED_UP.inc()
        self._strangers.count(now, Who(source=network), OTHERS)

    async def held_back(self, call: Call, status: int, reason: str) -> None:
        """Write down that a caller has too many calls; see the port."""
        now, caller = self._now(), call.caller
        if self._callers.admit(caller.share, now) and await self._try_put(
            record.completed(call, now, status, reason, 0)
        ):
            return
        metrics.SUMMED_UP.inc()
        kind = caller.kind.value
        self._callers.count(
            now,
            Who("", kind, caller.name, call.subject.namespace),
            Who("", kind, caller.name),
            Who("", kind, caller.share),
        )

    async def find_key(
        self, caller_name: str, namespace: str, idempotency_key_sha256: str
    ) -> Used | None:
        """Return what a key was used for within 30 days, by any replica; None = for nothing.

        A key is used once its change was announced, unless that was refused (4xx) or withdrawn.

        Raises:
            ProblemError: DATABASE_UNAVAILABLE: it cannot be known.
        """
        key = IdempotencyKey(caller_name, namespace, idempotency_key_sha256)
        # First the memory: a record that goes to the database meanwhile is found in both.
        here = self.announced.find(key)
        if not self.sink.connected:
            raise _database_unavailable()
        found = await self._asking.find(key, self._now() - KEY_DAYS)
        told = {request: each for request, each in here.items() if each.status is not None}
        return choose((here | found | told).values())

    async def _until_stored(self, head: Head) -> None:
        future = self._on_their_way.setdefault(head[:2], self._loop.create_future())
        try:
            if self.sink.has_stored(head):
                return
            await future
        finally:
            self._on_their_way.pop(head[:2], None)

    def _on_stored(self, records: Sequence[ChainedRecord]) -> None:
        self._loop.call_soon_threadsafe(self._note_stored, records)

    def _note_stored(self, records: Sequence[ChainedRecord]) -> None:
        self.announced.forget(records)
        self._stored_at = records[-1].at
        if self._on_their_way:
            for each in records:
                future = self._on_their_way.get(each[:2])
                if future is not None and not future.done():
                    future.set_result(None)

    def _has_room(self, limit: float, size: int = 0) -> bool:
        return self.file.size + self._queued_bytes + size <= limit

    async def _try_put(self, facts: str) -> bool:
        try:
            await self._put(facts, READS_SHARE * self._max_bytes)
        except ProblemError:
            return False
        return True

    async def _put(self, facts: str, limit: float) -> Head:
        size = len(facts) + _ADDED_BYTES
        if not self._has_room(limit, size):
            raise self._not_taken("full", "is full: the database takes no records")
        waiting = _Waiting(facts)
        self._queued_bytes += size
        try:
            await self._commit.put(waiting)
        finally:
            self._queued_bytes -= size
        if waiting.head is None:
            raise self._not_taken("disk", "cannot be written") from waiting.error
        return waiting.head

    async def _write(self, group: Sequence[_Waiting]) -> None:
        facts = [each.facts for each in group]
        try:
            heads = await self._loop.run_in_executor(self._executor, self._append, facts)
        except OSError as error:  # whoever waits is told, and may come again
            for each in group:
                each.error = error
            self._readiness.degraded(FILE, f"cannot be written: {error.strerror or error}")
            return
        for each, head in zip(group, heads, strict=True):
            each.head = head
        metrics.RECORDS.inc(len(group))
        if self._has_room(READS_SHARE * self._max_bytes):
            self._readiness.found(FILE)

    def _append(self, facts: Sequence[str]) -> list[Head]:
        heads = self.file.append(facts)
        self.sink.wake()  # from here: it need not wait for the loop as well
        return heads

    def _not_taken(self, why: str, detail: str) -> ProblemError:
        metrics.NOT_TAKEN.labels(why).inc()
        if why == "full":
            self._readiness.degraded(FILE, detail)
        return ProblemError(
            Slug.AUDIT_UNAVAILABLE,
            f"the audit's file {detail}",
            retry_after_seconds=_AGAIN_SECONDS,
        )

    async def _tick(self) -> None:
        """Sum up refusals, tell heads, and measure, now and then."""
        second = 0
        while True:
            await asyncio.sleep(1)
            second += 1
            self.measure()
            if second % SUM_SECONDS == 0:
                await self.sum_up()
            if second % HEAD_SECONDS == 0:
                self.say_head()

    def measure(self) -> None:
        """Set the metrics of the records that wait."""
        now = self._now()
        self._behind_since = (self._behind_since or now) if self.sink.behind else None
        # The record that was stored last may be old.
        since = max(self._behind_since or now, self._stored_at)
        metrics.DELAY_SECONDS.set(max(0.0, (now - since).total_seconds()))
        metrics.WAITING_BYTES.set(self.file.size)

    async def sum_up(self) -> None:
        """Record the refusals that are counted and have no record yet."""
        has_room = self._has_room(STRANGERS_SHARE * self._max_bytes)
        for refusals, apart in ((self._strangers, has_room), (self._callers, True)):
            for each in refusals.take(apart=apart):
                if not await self._try_put(record.refused_often(self._now(), each)):
                    refusals.give_back(each)

    def say_head(self) -> None:
        """Log the head of the chain in the database, for whoever keeps logs elsewhere."""
        if self.sink.head is not None:
            line = json.dumps({"event": "audit.head", **self.sink.head._asdict()})
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()


def _database_unavailable() -> ProblemError:
    return ProblemError(
        Slug.DATABASE_UNAVAILABLE,
        "what Idempotency-Keys were used for is in the database, which does not answer",
        retry_after_seconds=_AGAIN_SECONDS,
    )
