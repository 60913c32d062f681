"""The routes of reads on a real database, with callers and rights as a test says."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import httpx
from fastapi import APIRouter
from tests.headend.storage.storing import NOW

from derops.observability import Readiness
from derops_headend.api.application import make_application
from derops_headend.api.call import Call
from derops_headend.api.caller import Caller, CallerKind
from derops_headend.api.database import ReadingDatabase
from derops_headend.api.outer import Outer
from derops_headend.api.ports import Audit, Decision, Kubernetes, Parts, Rights
from derops_headend.api.problems import ProblemError, Slug, not_found


class ByName:
    """Rights of callers, who are known by their token: what they may read, by namespace/name."""

    def __init__(self, may: dict[str, set[str]]) -> None:
        self.may = may

    async def decide(
        self, caller: Caller, verb: str, resource: str, namespace: str, name: str = "", **_: bool
    ) -> Decision:
        known = f"{verb} {resource} {namespace}/{name}"
        return Decision(known in self.may.get(caller.name, ()), "as the test says")

    async def require(self, call: Call, *, fresh: bool = False) -> None:
        subject = call.subject
        found = await self.decide(
            call.caller, subject.verb, subject.resource, subject.namespace, subject.name
        )
        if not found.allowed:
            raise not_found()


@dataclass
class Records:
    """An audit that keeps its records in memory."""

    completed: list[tuple[Call, int, str, int]] = field(default_factory=list)

    async def complete(self, call: Call, status: int, reason: str, sent_bytes: int) -> None:
        self.completed.append((call, status, reason, sent_bytes))

    async def refused(self, *_: str) -> None:
        raise AssertionError("nobody is a stranger here")


@dataclass
class Assets:
    """What Kubernetes knows: uid and JSON by namespace and name; None = it is away."""

    known: dict[tuple[str, str], tuple[str, bytes]] | None = field(default_factory=dict)
    made_at: datetime = datetime(2000, 1, 1, tzinfo=UTC)
    """Of all namespaces."""

    async def namespace_made_at(self, _: str) -> datetime:
        return self.made_at

    def asset(self, namespace: str, name: str) -> Any:
        if self.known is None:
            raise ProblemError(Slug.KUBERNETES_UNAVAILABLE, "away", retry_after_seconds=1)
        found = self.known.get((namespace, name))
        return SimpleNamespace(uid=found[0], body=found[1]) if found else None


@dataclass
class Site:
    """A client, and what lies behind the routes."""

    client: httpx.AsyncClient
    app: Outer
    database: ReadingDatabase
    records: Records
    assets: Assets
    rights: ByName


async def caller_of(token: str, source: str) -> Caller:
    return Caller(kind=CallerKind.STATIC, name=token)


@asynccontextmanager
async def reading_site(
    url: str, routers: Sequence[APIRouter], may: set[str], now: datetime = NOW, **options: Any
) -> AsyncIterator[Site]:
    """Yield the routes, and a client that is known as ``alice``, who may what ``may`` says."""
    rights, records, assets = ByName({"alice": may}), Records(), Assets()
    async with ReadingDatabase(url, Readiness(), **options) as database:
        parts = Parts(
            rights=cast(Rights, rights),
            audit=cast(Audit, records),
            kubernetes=cast(Kubernetes, assets),
            database=database,
            now=lambda: now,
        )
        app = Outer(make_application(parts, routers), caller_of, parts.audit, [], lambda: now)
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app=app),
            base_url="http://api",
            headers={"Authorization": "Bearer alice"},
        ) as client:
            yield Site(client, app, database, records, assets, rights)
