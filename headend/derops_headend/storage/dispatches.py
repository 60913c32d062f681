"""The table ``dispatch``: filled for dispatches from before it, and compared with the events.

Triggers (migration 8) derive its rows from the events; nothing else writes it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import psycopg
from psycopg.rows import args_row

AT_ONCE = 500
"""Dispatches of one step: some 50 ms."""

MOST_STEPS = 1000
"""The most steps of one dispatch; beyond, no report of an agent about it is stored. Some ten are
usual. The row of a dispatch is derived from all its steps each time that one comes."""

_LOCK_MILLISECONDS = 100
"""A step that meets a writer gives way, long before the server looks for a deadlock (1 s)."""

_KEYS = """
    select distinct dispatch_uid, subject from dispatch_event
    where (dispatch_uid, subject) > (%(uid)s, %(subject)s) order by 1, 2 limit %(limit)s
"""
_TOLD = """
    lateral (
      select * from dispatch_told
      where dispatch_uid = keys.dispatch_uid and subject = keys.subject
      offset 0  -- each by its key: else the planner reads the events of all
    )
"""
# A row that is there follows its events already.
_FILL = f"""
    with keys as materialized ({_KEYS}), filled as (
      insert into dispatch select told.* from keys cross join {_TOLD} as told
      on conflict (dispatch_uid, subject) do nothing
    )
    select dispatch_uid, subject, count(*) over () from keys
    order by 1 desc, 2 desc limit 1
"""  # noqa: S608  # our own text
_COMPARE = f"""
    with keys as materialized (
      select * from ({_KEYS}) as told
      union
      select * from (
        select dispatch_uid, subject from dispatch
        where (dispatch_uid, subject) > (%(uid)s, %(subject)s) order by 1, 2 limit %(limit)s
      ) as kept
      order by 1, 2 limit %(limit)s
    )
    select keys.dispatch_uid, keys.subject, kept is distinct from told,
      to_jsonb(kept), to_jsonb(told)
    from keys
    left join dispatch as kept using (dispatch_uid, subject)
    left join {_TOLD} as told on true
    order by 1, 2
"""  # noqa: S608  # our own text


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A row that is not what its events say."""

    dispatch_uid: str
    subject: str
    """Namespace and name of the asset, with a slash between."""

    kept: dict[str, Any]
    """What differs, as the row has it; empty = there is no row."""

    told: dict[str, Any]
    """And as the events say; empty = there are none."""


def is_filled(connection: psycopg.Connection) -> bool:
    """Return whether all dispatches have a row: those from before the table, too."""
    row = connection.execute("select done_at is not null from dispatch_backfill").fetchone()
    return row == (True,)


class EndedRow(NamedTuple):
    """A dispatch that has ended, as its row says."""

    namespace: str
    asset_name: str
    dispatch_name: str | None
    dispatch_uid: str
    request_id: str | None
    phase: str
    reason: str


def find_ended(
    connection: psycopg.Connection, keys: Iterable[tuple[str, str]]
) -> tuple[EndedRow, ...]:
    """Return the rows of dispatches, by uid and subject."""
    uids, subjects = zip(*keys, strict=True)
    with connection.cursor(row_factory=args_row(EndedRow)) as cursor:
        found = cursor.execute(
            "select namespace, asset_name, dispatch_name, dispatch_uid, request_id, phase, reason "
            "from dispatch join unnest(%s::text[], %s::text[]) as asked (dispatch_uid, subject) "
            "using (dispatch_uid, subject)",
            (list(uids), list(subjects)),
        )
        return tuple(found.fetchall())


def find_full(
    connection: psycopg.Connection, keys: Iterable[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Return the dispatches, by uid and subject, that have as many steps as an agent may report."""
    uids, subjects = zip(*keys, strict=True)
    rows = connection.execute(
        "select dispatch_uid, subject from dispatch "
        "join unnest(%s::text[], %s::text[]) as asked (dispatch_uid, subject) "
        "using (dispatch_uid, subject) where steps >= %s",
        (list(uids), list(subjects), MOST_STEPS),
    ).fetchall()
    return {(uid, subject) for uid, subject in rows}


def fill(connection: psycopg.Connection, limit: int | None = None) -> int | None:
    """Give a row to the next dispatches that may have none.

    Args:
        connection: In autocommit mode.
        limit: How many at most; None = as many as take some 50 ms.

    Returns:
        How many were looked at; None = all have a row.

    Raises:
        psycopg.errors.LockNotAvailable: A writer has just made one of them; nothing is done.
    """
    with connection.transaction():
        connection.execute(f"set local lock_timeout = {_LOCK_MILLISECONDS}")
        row = connection.execute(
            "select after_uid, after_subject from dispatch_backfill where done_at is null "
            "for update skip locked"
        ).fetchone()
        if row is None:  # done, or another writer is at it
            return None if is_filled(connection) else 0
        last = connection.execute(
            _FILL.encode(), {"uid": row[0], "subject": row[1], "limit": limit or AT_ONCE}
        ).fetchone()
        if last is None:
            connection.execute("update dispatch_backfill set done_at = now()")
            return None
        connection.execute(
            "update dispatch_backfill set (after_uid, after_subject) = (%s, %s)", last[:2]
        )
        return int(last[2])


def compare(
    connection: psycopg.Connection, after: tuple[str, str] = ("", ""), limit: int = AT_ONCE
) -> tuple[list[Difference], tuple[str, str] | None]:
    """Compare the next rows with what their events say, in one snapshot.

    Args:
        connection: To the migrated database.
        after: Uid and subject of the last that was compared.
        limit: How many at most.

    Returns:
        Those that differ, and the last that was compared; None = there are no more.
    """
    rows = connection.execute(
        _COMPARE.encode(), {"uid": after[0], "subject": after[1], "limit": limit}
    ).fetchall()
    found = [
        _difference(uid, subject, kept or {}, told or {})
        for uid, subject, differs, kept, told in rows
        if differs
    ]
    return found, rows[-1][:2] if rows else None


def _difference(uid: str, subject: str, kept: dict[str, Any], told: dict[str, Any]) -> Difference:
    unequal = [name for name in kept | told if kept.get(name) != told.get(name)]
    return Difference(
        dispatch_uid=uid,
        subject=subject,
        kept={name: kept[name] for name in unequal if name in kept},
        told={name: told[name] for name in unequal if name in told},
    )
