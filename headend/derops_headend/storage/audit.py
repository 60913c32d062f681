"""The audit in the database: records come in, and are found again."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg.rows import class_row

from derops_headend.storage.chain import ChainedRecord
from derops_headend.writing.refusals import clean

MOST_ROWS, MOST_PAGE_BYTES = 500, 2 * 1024**2
"""The most records, and bytes, of one page."""

MOST_BODY, _MOST_CHAIN = 65_536, 200
"""Bytes and characters. Whoever may add records may add longer ones; ours are shorter."""

COLUMNS: dict[str, LiteralString] = {
    "chain": "text",
    "seq": "bigint",
    "hash": "text",
    "at": "timestamptz",
    "body": "text",
    "stage": "text",
    "request_id": "text",
    "caller": "text",
    "namespace": "text",
    "verb": "text",
    "resource": "text",
    "name": "text",
    "object_uid": "text",
    "status": "integer",
    "idempotency_key_sha256": "text",
}
# Rows go as one text: to make arrays of 15 columns of psycopg takes ten times as long.
_VALUES = ", ".join(f"(given->>{number})::{kind}" for number, kind in enumerate(COLUMNS.values()))
_INSERT = (
    f"insert into audit_event ({', '.join(COLUMNS)}) "  # noqa: S608  # our own names
    f"select {_VALUES} from jsonb_array_elements(%s::jsonb) given on conflict do nothing"
)
_COUNT = (
    "select count(*) from audit_event join unnest(%s::text[], %s::bigint[], %s::text[], "
    "%s::timestamptz[]) as given (chain, seq, hash, at) using (chain, seq, hash, at)"
)


def row_of(record: ChainedRecord) -> tuple[Any, ...]:
    """Return the values of a record's row, in the order of COLUMNS."""
    facts = json.loads(record.body)
    principal = facts.get("principal") or {}
    texts = (
        facts.get("stage"),
        facts.get("requestId"),
        principal.get("name"),
        facts.get("namespace"),
        facts.get("verb"),
        facts.get("resource"),
        facts.get("name"),
        facts.get("objectUid"),
    )
    return (
        *record,
        *map(_text, texts),
        facts.get("status"),
        _text(facts.get("idempotencyKeySha256")),
    )


def store(connection: psycopg.Connection, records: Sequence[ChainedRecord]) -> int:
    """Add records that may be there already; return how many places another record has.

    Args:
        connection: A connection of a role that may insert and select, in autocommit mode.
        records: Some, in any order.

    Raises:
        psycopg.Error: Whether they are stored is not known; they can be given again.
    """
    rows = json.dumps([row_of(each) for each in records], default=datetime.isoformat)
    # One statement is a transaction of its own: an announced order waits for no begin and commit.
    added = connection.execute(_INSERT.encode(), (rows,)).rowcount
    if added == len(records):
        return 0
    columns = [list(column) for column in zip(*records, strict=True)]
    row = connection.execute(_COUNT.encode(), columns[:4]).fetchone()
    return len(records) - (row[0] if row else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """A change that was announced with an Idempotency-Key, and what its call was answered."""

    at: datetime
    body: str
    status: int | None
    """HTTP; None = not told."""

    name: str
    object_uid: str


_OF_A_KEY: LiteralString = (
    "announced.idempotency_key_sha256 = %s and announced.caller = %s "
    "and announced.namespace = %s and announced.at >= %s and announced.at < '9999-12-30Z' "
    "and announced.stage = 'RequestReceived' and announced.idempotency_key_sha256 <> '' "
)


def is_announced_often(
    connection: psycopg.Connection,
    caller: str,
    namespace: str,
    sha256: str,
    since: datetime,
    most: int,
) -> bool:
    """Tell whether an Idempotency-Key was announced at least so often, whatever became of it."""
    text = f"select from audit_event announced where {_OF_A_KEY} offset %s limit 1"
    row = connection.execute(
        text.encode(),
        (sha256, _text(caller), _text(namespace), since, most - 1),
    ).fetchone()
    return row is not None


def find_announcements(
    connection: psycopg.Connection, caller: str, namespace: str, sha256: str, since: datetime
) -> list[Announcement]:
    """Return what was announced with an Idempotency-Key; what was made comes first.

    What was refused (4xx) or withdrawn is left out: it made nothing.
    """
    with connection.cursor(row_factory=class_row(Announcement)) as cursor:
        return cursor.execute(
            "select announced.at, announced.body, done.status, "  # noqa: S608  # our own names
            "coalesce(nullif(done.name, ''), announced.name) as name, "
            "coalesce(done.object_uid, '') as object_uid "
            "from audit_event announced left join lateral ("
            "select * from audit_event where request_id = announced.request_id "
            "and stage = 'ResponseComplete' and at >= announced.at - interval '1 hour' limit 1"
            ") done on true "
            f"where {_OF_A_KEY}"
            "and coalesce(done.status, 0) not between 400 and 499 "
            "and not exists (select from audit_event where request_id = announced.request_id "
            "and stage = 'Withdrawn') "
            "order by coalesce(done.object_uid, '') = '', announced.at limit 100",
            (sha256, _text(caller), _text(namespace), since),
        ).fetchall()


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditFilter:
    """Which records; None does not restrict."""

    namespace: str | None = None
    caller: str | None = None
    verb: str | None = None
    resource: str | None = None
    name: str | None = None
    request_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    """Before this."""


class Mark(NamedTuple):
    """Which record a page ended with."""

    at: datetime
    chain: str
    seq: int


_IS_TIME: LiteralString = "at between '0001-01-02Z' and '9999-12-30Z'"
"""Other rows are not ours: no client could read their instant."""

_RESTRICTIONS: dict[str, LiteralString] = {
    "namespace": "namespace = %(namespace)s",
    "caller": "caller = %(caller)s",
    "verb": "verb = %(verb)s",
    "resource": "resource = %(resource)s",
    "name": "name = %(name)s",
    "request_id": "request_id = %(request_id)s",
    "since": "at >= %(since)s",
    "until": "at < %(until)s",
}


class RecordPage(NamedTuple):
    """Some records."""

    records: list[ChainedRecord]
    """What is longer than any of ours is cut, so it is no JSON."""

    end: Mark | None
    """Where the next page begins; None = this is the last."""


def find_page(
    connection: psycopg.Connection, wanted: AuditFilter, *, after: Mark | None = None, limit: int
) -> RecordPage:
    """Return records, the newest first: up to MOST_PAGE_BYTES, and one at least.

    Args:
        connection: To the migrated database.
        wanted: Which records.
        after: The end of the page before.
        limit: How many at most, 1 to 500.
    """
    facts = {name: getattr(wanted, name) for name in _RESTRICTIONS}
    given = {name: value for name, value in facts.items() if value is not None}
    where = [_RESTRICTIONS[name] for name in given]
    if after is not None:
        where.append("(at, chain, seq) < (%(after_at)s, %(after_chain)s, %(after_seq)s)")
        given |= {f"after_{name}": value for name, value in after._asdict().items()}
    # The length of a text is known without reading it.
    text = (
        "select left(chain, %(chain)s + 1), seq, left(hash, 64), at, "  # noqa: S608  # our own names
        "case when octet_length(body) > %(body)s then left(body, 1000) else body end, found "
        "from (select *, count(*) over () found, sum(least(octet_length(body), %(body)s)) "
        "over (order by at desc, chain desc, seq desc rows unbounded preceding) bytes "
        "from (select chain, seq, hash, at, body from audit_event "
        f"where {' and '.join([_IS_TIME, *where])} "
        "order by at desc, chain desc, seq desc limit %(limit)s) picked) measured "
        "where bytes <= %(bytes)s order by at desc, measured.chain desc, seq desc"
    )
    limit = max(1, min(limit, MOST_ROWS))
    bounds = {"chain": _MOST_CHAIN, "body": MOST_BODY, "bytes": MOST_PAGE_BYTES}
    rows = connection.execute(text.encode(), given | bounds | {"limit": limit + 1}).fetchall()
    records = [ChainedRecord(*row[:5]) for row in rows[:limit]]
    has_more = bool(rows) and rows[0][5] > len(records)
    return RecordPage(records, _mark_of(records[-1]) if has_more else None)


def _mark_of(record: ChainedRecord) -> Mark:
    """Return where the page after a record begins; what a cut chain may have left is passed."""
    if len(record.chain) > _MOST_CHAIN:
        return Mark(record.at, record.chain[:_MOST_CHAIN], 2**63 - 1)
    return Mark(record.at, record.chain, record.seq)


def _text(value: Any) -> str:
    """Return a text as PostgreSQL can store it."""
    return clean(str(value or "")).encode("utf-8", "replace").decode()
