"""What callers may do, by SubjectAccessReviews; the port ``Rights``."""

import asyncio
import time
from collections.abc import Callable, Sequence

from derops_headend.api.cache import Expiring
from derops_headend.api.call import Call
from derops_headend.api.caller import Caller
from derops_headend.api.ports import Decision
from derops_headend.api.problems import ProblemError, Slug, not_found
from derops_headend.api.reviews import Reviews

ALLOWED_SECONDS, DENIED_SECONDS = 10.0, 3.0
"""How long an answer of the API server is believed."""

MOST_DECISIONS = 10_000

READS = ("get", "list", "watch")

_Key = tuple[object, ...]


class ReviewedRights:
    """The cluster's RBAC, with a short memory."""

    def __init__(self, reviews: Reviews, now_seconds: Callable[[], float] = time.monotonic) -> None:
        self._reviews = reviews
        self._known: Expiring[_Key, Decision] = Expiring(MOST_DECISIONS, now_seconds)

    async def decide(
        self,
        caller: Caller,
        verb: str,
        resource: str,
        namespace: str,
        name: str = "",
        *,
        fresh: bool = False,
    ) -> Decision:
        """See ``ports.Rights``."""
        key = (*_identity(caller), verb, resource, namespace, name)
        known = None if fresh else self._known.get(key)
        if known is not None:
            return known
        found = await self._reviews.review_access(caller, verb, resource, namespace, name)
        self._known.put(key, found, ALLOWED_SECONDS if found.allowed else DENIED_SECONDS)
        return found

    async def require(self, call: Call, *, fresh: bool = False) -> None:
        """See ``ports.Rights``."""
        subject = call.subject
        found = await self.decide(
            call.caller,
            subject.verb,
            subject.resource,
            subject.namespace,
            subject.name,
            fresh=fresh,
        )
        subject.decision, subject.rule = "allow" if found.allowed else "forbid", found.rule
        if found.allowed:
            return
        kind = subject.resource.partition("/")[0]
        if subject.verb in READS or not await self._may_read(call.caller, kind, subject.namespace):
            raise not_found()
        where = "in this namespace" if subject.namespace else "in all namespaces"
        raise ProblemError(
            Slug.FORBIDDEN,
            f"You may not {subject.verb} {subject.resource} {where}: ask for a RoleBinding",
        )

    async def namespaces(
        self, caller: Caller, verb: str, resource: str, among: Sequence[str]
    ) -> list[str]:
        """See ``ports.Rights``."""
        if (await self.decide(caller, verb, resource, "")).allowed:
            return list(among)
        found = await asyncio.gather(
            *(self.decide(caller, verb, resource, namespace) for namespace in among)
        )
        return [each for each, decision in zip(among, found, strict=True) if decision.allowed]

    async def _may_read(self, caller: Caller, kind: str, namespace: str) -> bool:
        return (await self.decide(caller, "get", kind, namespace)).allowed


def _identity(caller: Caller) -> _Key:
    """Return all facts of a caller that an authoriser may use."""
    return (caller.name, caller.uid, caller.groups, *sorted(caller.extra.items()))
