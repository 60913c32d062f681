"""Asks the database what Idempotency-Keys were used for, on one connection of its own."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import psycopg

from derops_headend.api.audit.keys import Announced, IdempotencyKey, used_of
from derops_headend.api.audit.sink import Connect
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.storage.audit import (
    Announcement,
    find_announcements,
    is_announced_often,
)
from derops_headend.storage.disconnect import cut

KEY_DAYS = timedelta(days=30)
MOST_ANNOUNCEMENTS = 100
"""The most announcements of one key: reading each takes time, and all other callers wait."""

_STATEMENT_MILLISECONDS, _ASK_SECONDS = 3000, 5.0
_AGAIN_SECONDS = 10


class KeyLookup:
    """One question at a time; each takes about a millisecond."""

    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._executor = ThreadPoolExecutor(1, "audit-ask")
        self._connection: psycopg.Connection | None = None

    async def find(self, key: IdempotencyKey, since: datetime) -> dict[str, Announced]:
        """Return what the database knows of a key, by request.

        Raises:
            ProblemError: DATABASE_UNAVAILABLE. KEY_EXPIRED: it was announced too often; nearly all
                of that was refused, as what is made is announced once. Or a record of it says
                nothing, so what was made by it is not known.
        """
        try:
            found = await asyncio.wait_for(self._ask_at_most_twice(key, since), _ASK_SECONDS)
        except (psycopg.Error, TimeoutError) as error:
            self._cut()
            raise ProblemError(
                Slug.DATABASE_UNAVAILABLE,
                "what Idempotency-Keys were used for is in the database, which does not answer",
                retry_after_seconds=_AGAIN_SECONDS,
            ) from error
        return dict(map(_announced, found))

    def close(self) -> None:
        """Close the connection."""
        self._cut()
        self._executor.shutdown(cancel_futures=True)
        if self._connection is not None:
            self._connection.close()

    async def _ask_at_most_twice(self, key: IdempotencyKey, since: datetime) -> list[Announcement]:
        """Ask; ask again if the server has ended the connection since the last question."""
        run = asyncio.get_running_loop().run_in_executor
        try:
            return await run(self._executor, self._ask, key, since)
        except psycopg.OperationalError:
            if self._connection is None or not self._connection.closed:
                raise
            return await run(self._executor, self._ask, key, since)

    def _cut(self) -> None:
        if self._connection is not None and not self._connection.closed:
            cut(self._connection)

    def _ask(self, key: IdempotencyKey, since: datetime) -> list[Announcement]:
        if self._connection is None or self._connection.closed:
            self._connection = self._connect()
            self._connection.execute(f"set statement_timeout = {_STATEMENT_MILLISECONDS}")
        if is_announced_often(self._connection, *key, since, MOST_ANNOUNCEMENTS):
            raise ProblemError(
                Slug.KEY_EXPIRED,
                f"the key was used for {MOST_ANNOUNCEMENTS} calls: see the history, and take a new "
                "key to order again",
            )
        return find_announcements(self._connection, *key, since)


def _announced(row: Announcement) -> tuple[str, Announced]:
    """Return what a row says, by request; the owner of the table may write anything."""
    try:
        used = used_of(json.loads(row.body), row.at)
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise ProblemError(
            Slug.KEY_EXPIRED,
            "a record of the key in the audit cannot be read, so nobody knows what it was used "
            "for: see the history, and take a new key to order again",
        ) from error
    used = used._replace(name=row.name, object_uid=row.object_uid)
    return used.request_id, Announced(used, row.status)
