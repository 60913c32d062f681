"""Months of the audit: partitions are made ahead, and dropped with a record at their end."""

import json
import secrets
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

import psycopg
import structlog
from psycopg import sql

from derops.instants import format_instant
from derops_headend.storage import metrics
from derops_headend.storage.audit import store
from derops_headend.storage.chain import ChainedRecord, Head, begin, link

RETENTION = "retention/"
"""Prefix of the name of the chain that records drops."""

DROPPED = "Dropped"
"""Stage of a record of a drop."""

AHEAD_MONTHS = 2
_LAST_SEQ = 2**62
_OTHERS = "audit_event_other"
_RANGES = """
    with recursive known (chain) as (
      (select chain from {partition} order by chain limit 1)
      union all
      select (
        select chain from {partition} it where it.chain > known.chain order by chain limit 1
      ) from known where known.chain is not null
    )
    select known.chain, first.seq, last.seq, last.hash from known,
      lateral (
        select seq from {partition} it where it.chain = known.chain order by seq limit 1
      ) first,
      lateral (
        select seq, hash from {partition} it where it.chain = known.chain order by seq desc limit 1
      ) last
"""


def prepare_months(connection: psycopg.Connection, now: datetime) -> None:
    """Make the missing partitions of this month and of those to come."""
    month = now.astimezone(UTC).date().replace(day=1)
    for _ in range(AHEAD_MONTHS + 1):
        connection.execute("select ensure_audit_month(%s)", (month,))
        month = (month + timedelta(days=32)).replace(day=1)


def drop_months(connection: psycopg.Connection, before: date, now: datetime) -> None:
    """Drop the months that are wholly older than a day (UTC), and record it in the audit.

    Args:
        connection: A connection of the role that owns the audit, in autocommit mode.
        before: Midnight.
        now: When the drop is told.
    """
    for partition in _partitions(connection):
        if not _is_over(connection, partition, before):
            continue
        with connection.transaction():
            connection.execute("lock table audit_event in access exclusive mode")
            if partition in _partitions(connection) and _is_over(connection, partition, before):
                _drop(connection, partition, now)


def _partitions(connection: psycopg.Connection) -> list[str]:
    """Return the partitions that we made."""
    rows = connection.execute(
        "select relname from pg_inherits join pg_class on oid = inhrelid "
        "where inhparent = 'audit_event'::regclass "
        "and relname ~ '^audit_event_([0-9]{6}|other)$' order by relname"
    ).fetchall()
    return [name for (name,) in rows]


def _is_over(connection: psycopg.Connection, partition: str, before: date) -> bool:
    """Tell whether all in a partition is too old; of a month, its name says so."""
    if partition != _OTHERS:
        month = datetime.strptime(partition[-6:], "%Y%m").replace(tzinfo=UTC).date()
        return (month + timedelta(days=32)).replace(day=1) <= before
    # Compared in the database: a record may have a year that Python does not know.
    row = connection.execute(
        "select max(at) < %s from audit_event_other",
        (datetime(*before.timetuple()[:3], tzinfo=UTC),),
    ).fetchone()
    return row is not None and row[0] is True


def _drop(connection: psycopg.Connection, partition: str, now: datetime) -> None:
    table = sql.Identifier(partition)
    ranges = connection.execute(sql.SQL(_RANGES).format(partition=table)).fetchall()
    if ranges:
        _tell(connection, partition, ranges, now)
    connection.execute(sql.SQL("drop table {}").format(table))
    if partition == _OTHERS:
        connection.execute("create table audit_event_other partition of audit_event default")
        connection.execute(
            "create trigger audit_event_no_truncate before truncate on audit_event_other "
            "execute function refuse_change_of_audit()"
        )
    metrics.AUDIT_PARTITIONS_DROPPED.inc()


def _tell(
    connection: psycopg.Connection,
    partition: str,
    ranges: Iterable[tuple[str, int, int, str]],
    now: datetime,
) -> None:
    at = now.astimezone(UTC)
    facts = {
        "stage": DROPPED,
        "at": format_instant(at, "microseconds"),
        "verb": "drop",
        "resource": "audits",
        "name": partition,
        "dropped": [
            {"chain": chain, "first": first, "last": last, "hash": digest}
            for chain, first, last, digest in ranges
        ],
    }
    body, head = link(_head(connection, at), json.dumps(facts, separators=(",", ":")))
    store(connection, [ChainedRecord(head.chain, head.seq, head.hash, at, body)])
    structlog.get_logger("audit").info(
        "audit.dropped", month=partition, chain=head.chain, seq=head.seq, hash=head.hash
    )


def _head(connection: psycopg.Connection, at: datetime) -> Head:
    """Return the head of the chain that records drops."""
    row = connection.execute(
        "select chain, seq, hash from audit_event where starts_with(chain, %s) "
        "and chain >= %s order by chain desc, seq desc limit 1",
        (RETENTION, RETENTION),
    ).fetchone()
    # Whoever may add records could add one with the last number that there is.
    if row and row[1] < _LAST_SEQ:
        return Head(*row)
    return begin(f"{RETENTION}{at:%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}")
