"""Placing an order once, however often a caller repeats the call.

The memory is the audit: the use of a key is announced there before Kubernetes is called. The object
shows what became of an announcement, or else what Kubernetes remembers of its name since. If
neither can tell, nothing is made.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from derops.instants import format_instant
from derops_headend.api.call import Call
from derops_headend.api.orders import (
    CREATED_BY,
    REQUEST_ID,
    REQUEST_SHA256,
    NewDispatch,
    canonical,
    manifest_of,
    name_of,
    sha256_of,
)
from derops_headend.api.ports import Audit, Existence, Kubernetes, Manifest, Rights, Used
from derops_headend.api.problems import Fault, ProblemError, Slug
from derops_headend.api.refusals import REPEAT_WITH_THE_SAME_KEY

ANNOUNCED_SECONDS = 6.0
"""The longest time between the begin of an announcement and the sending of its create."""

UNDER_WAY_SECONDS = 18.0
"""So long after an announcement, its create was carried out or never will be. It is sent within
ANNOUNCED_SECONDS, the API server gives it up after 5 s, and clocks of replicas differ."""

_APPEARS_SECONDS = 3.0
_MAY_DIFFER = "ttlSecondsAfterFinished"
"""A field of the spec that may be changed later."""


class Placed(NamedTuple):
    """An order, and whether this call made it or an earlier one did."""

    dispatch: Manifest
    replayed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The order that one call asks for."""

    call: Call
    namespace: str
    order: NewDispatch
    key: str
    """The Idempotency-Key."""

    @property
    def name(self) -> str:
        """The name of the Dispatch."""
        return self.order.name or name_of(self.call.caller, self.namespace, self.key)

    @property
    def key_sha256(self) -> str:
        """The key, as the audit keeps it."""
        return sha256_of(self.key)

    @property
    def body_sha256(self) -> str:
        """A hash that is equal for equal orders."""
        return sha256_of(canonical(self.order))

    @property
    def request_sha256(self) -> str:
        """A hash that tells a Dispatch of this call from those of others."""
        return sha256_of([self.call.caller.name, self.namespace, self.key, self.body_sha256])


class Placing:
    """Places orders; calls with the same key take turns."""

    def __init__(
        self, rights: Rights, audit: Audit, kubernetes: Kubernetes, now: Callable[[], datetime]
    ) -> None:
        self._rights, self._audit = rights, audit
        self._kubernetes, self._now = kubernetes, now
        self._turns: dict[tuple[str, str, str], _Turn] = {}

    async def place(self, asked: Asked) -> Placed:
        """Make the Dispatch that is asked for, or find the one that the same call made before.

        Raises:
            ProblemError: FORBIDDEN, NOT_FOUND: the caller may not; KEY_REUSED, KEY_EXPIRED;
                CONFLICT: another Dispatch has the name, or the first call is still under way; any
                problem of Kubernetes, audit and database.
        """
        async with self._turn(asked):
            placed = await self._place(asked)
        asked.call.subject.object_uid = placed.dispatch["metadata"]["uid"]
        return placed

    async def _place(self, asked: Asked) -> Placed:
        """Ask for the caller's right and for the key at once; without the right tell nothing."""
        looking = asyncio.create_task(self._look_up(asked))
        try:
            await self._rights.require(asked.call, fresh=True)
            used = await looking
        finally:
            looking.cancel()
        if isinstance(used, ProblemError):
            if used.slug is not Slug.DATABASE_UNAVAILABLE:
                raise used
            return await self._find_without_memory(asked, used)
        if used is not None:
            return await self._repeat(asked, used)
        start = asked.order.start_time or format_instant(self._now())
        return await self._make(asked, asked.name, start, self._kubernetes.dispatch_version())

    async def _look_up(self, asked: Asked) -> Used | ProblemError | None:
        """Return what the key was used for, or why that cannot be known."""
        try:
            return await self._audit.find_key(
                asked.call.caller.name, asked.namespace, asked.key_sha256
            )
        except ProblemError as problem:
            return problem

    async def _find_without_memory(self, asked: Asked, problem: ProblemError) -> Placed:
        """Return the object that the key names: without the memory nothing else is known of it."""
        existing = await self._kubernetes.dispatch(asked.namespace, asked.name)
        if existing is None or not _is_made_by(existing, asked):
            raise problem
        asked.call.subject.name = asked.name
        return Placed(existing, replayed=True)

    async def _repeat(self, asked: Asked, used: Used) -> Placed:
        if used.body_sha256 != asked.body_sha256:
            raise ProblemError(
                Slug.KEY_REUSED,
                "the Idempotency-Key was used for another order: take a new key for a new order",
            )
        asked.call.subject.name = used.name
        found = await self._look(asked, used)
        if found is not None:
            return found
        if used.object_uid:
            raise _expired("it made a Dispatch that was deleted since")
        age = self._now() - used.at
        if age < timedelta(seconds=UNDER_WAY_SECONDS):
            await self._kubernetes.appears(asked.namespace, used.name, _APPEARS_SECONDS)
            found = await self._look(asked, used)
            if found is not None:
                return found
            raise _under_way(timedelta(seconds=UNDER_WAY_SECONDS) - age)
        return await self._make_again(asked, used)

    async def _make_again(self, asked: Asked, used: Used) -> Placed:
        """Make an announced Dispatch that has no answer, if it certainly never was made."""
        since, start = used.change.get("sinceVersion"), used.change.get("startTime")
        life = Existence.UNKNOWN
        if isinstance(since, str) and isinstance(start, str):
            life = await self._kubernetes.life_of(asked.namespace, used.name, since)
        if life is Existence.NEVER_WAS:
            return await self._make(asked, used.name, str(start), str(since), earlier=used)
        found = await self._look(asked, used)
        if found is not None:
            return found
        if life is Existence.WAS_THERE:
            raise _expired("it made a Dispatch that was deleted since")
        raise _expired("nobody knows any more whether it made a Dispatch")

    async def _make(
        self, asked: Asked, name: str, start: str, since: str, earlier: Used | None = None
    ) -> Placed:
        """Announce, then create; if another call announced the same first, its order counts."""
        call = asked.call
        call.subject.name = name
        call.subject.idempotency_key_sha256 = asked.key_sha256
        call.subject.body_sha256 = asked.body_sha256
        call.subject.change = {
            **canonical(asked.order),
            "startTime": start,
            "sinceVersion": since,
        }
        begun = self._now()
        await self._audit.announce(call)
        first = await self._audit.find_key(call.caller.name, asked.namespace, asked.key_sha256)
        ours = {call.request_id, earlier.request_id if earlier is not None else call.request_id}
        if first is not None and first.request_id not in ours:
            return await self._repeat(asked, first)
        if self._now() - begun > timedelta(seconds=ANNOUNCED_SECONDS):
            raise ProblemError(
                Slug.AUDIT_UNAVAILABLE,
                f"the audit took longer than {ANNOUNCED_SECONDS:.0f} s to record the order, and "
                "nothing was made: repeat the call with the same Idempotency-Key",
                retry_after_seconds=int(UNDER_WAY_SECONDS),
            )
        manifest = manifest_of(
            asked.order,
            asked.namespace,
            name,
            start,
            {
                CREATED_BY: call.caller.name,
                REQUEST_ID: call.request_id,
                REQUEST_SHA256: asked.request_sha256,
            },
        )
        return await self._create(asked, name, manifest)

    async def _create(self, asked: Asked, name: str, manifest: Manifest) -> Placed:
        try:
            made = await self._kubernetes.create_dispatch(asked.namespace, manifest, dry_run=False)
        except ProblemError as problem:
            if problem.slug is not Slug.CONFLICT:
                raise
            existing = await self._kubernetes.dispatch(asked.namespace, name)
            if existing is None:
                raise ProblemError(
                    Slug.KUBERNETES_UNAVAILABLE, REPEAT_WITH_THE_SAME_KEY, retry_after_seconds=5
                ) from problem
            if not _is_made_by(existing, asked):
                raise _name_taken() from problem
            return Placed(existing, replayed=True)
        return Placed(made, replayed=False)

    async def _look(self, asked: Asked, used: Used) -> Placed | None:
        """Return what an earlier call made, if it is there."""
        existing = await self._kubernetes.dispatch(asked.namespace, used.name)
        if existing is None:
            return None
        if used.object_uid and existing["metadata"]["uid"] != used.object_uid:
            raise _expired("its Dispatch was deleted, and another has the name now")
        if not used.object_uid and not _is_made_by(existing, asked):
            raise _name_taken()
        return Placed(existing, replayed=True)

    @asynccontextmanager
    async def _turn(self, asked: Asked) -> AsyncIterator[None]:
        key = (asked.call.caller.name, asked.namespace, asked.key_sha256)
        turn = self._turns.setdefault(key, _Turn())
        turn.waiting += 1
        try:
            async with turn.lock:
                yield
        finally:
            turn.waiting -= 1
            if not turn.waiting:
                del self._turns[key]


class _Turn:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.waiting = 0


def _is_made_by(existing: Manifest, asked: Asked) -> bool:
    """Tell whether an object is what this order makes, and whether this order made it.

    With the admission policies, nobody but the API makes an object with these annotations. Without
    them only the key is secret: whoever may read an object can make its like under its name, once
    it is gone. So the object must order the same as well; an order without a start, at any time.
    """
    annotations: Any = existing["metadata"].get("annotations") or {}
    start = asked.order.start_time or existing["spec"].get("startTime", "")
    wanted = manifest_of(asked.order, asked.namespace, "", start, {})["spec"]
    return (
        annotations.get(REQUEST_SHA256) == asked.request_sha256
        and annotations.get(CREATED_BY) == asked.call.caller.name
        and all(
            existing["spec"].get(name) == value
            for name, value in wanted.items()
            if name != _MAY_DIFFER
        )
    )


def _expired(why: str) -> ProblemError:
    return ProblemError(
        Slug.KEY_EXPIRED,
        f"the key was used, and {why}: see the history, and take a new key to order again",
    )


def _under_way(rest: timedelta) -> ProblemError:
    return ProblemError(
        Slug.CONFLICT,
        "a call with this Idempotency-Key may still be under way: repeat it with the same key",
        retry_after_seconds=max(1, -int(-rest.total_seconds() // 1)),
    )


def _name_taken() -> ProblemError:
    return ProblemError(
        Slug.CONFLICT,
        "the namespace has a Dispatch of this name, which another call made",
        faults=[
            Fault(code="AlreadyExists", detail="is taken: choose another name", pointer="/name")
        ],
    )
