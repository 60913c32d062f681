"""What is told of one asset beside its samples: gaps, connections, measurements, setpoints.

Each function takes a connection with a transaction. A page begins after the place of the last row
of the page before, so that rows which come in meanwhile shift nothing.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import NamedTuple

import psycopg
from psycopg.rows import class_row

from derops_headend.storage.history import lines_of
from derops_headend.storage.newest import AssetKey

MOST_SETPOINTS = 500
LONGEST_AGO = timedelta(days=400)
"""How long before a time a setpoint may have been ordered to be looked for in it."""


class Gap(NamedTuple):
    """Samples that an agent had to drop."""

    from_at: datetime
    outbox_id: str
    sequence: Decimal
    to_at: datetime
    samples: int
    reason: str
    received_at: datetime


class GapPlace(NamedTuple):
    """Where a gap stands in their order."""

    from_at: datetime
    outbox_id: str
    sequence: int


class Connected(NamedTuple):
    """What happened to a connection of an asset's agent."""

    at: datetime
    event: str
    reason: str
    message: str
    epoch: str
    """A whole number below 2^64."""
    peer: str
    serial_number: str
    replica: str
    log_id: str
    log_offset: int
    entry_index: int


class ConnectedPlace(NamedTuple):
    """Where such an event stands in their order."""

    at: datetime
    log_id: str
    log_offset: int
    entry_index: int


class Values(NamedTuple):
    """Values of one measurement, in order of time."""

    times: Sequence[datetime]
    values: Sequence[float]


class HeldSetpoint(NamedTuple):
    """A setpoint that a device was given."""

    dispatch_uid: str
    dispatch_name: str | None
    applied_at: datetime
    until: datetime | None
    """When it was ended; None = it is not known to have."""
    watts: int | None


def list_gaps(
    connection: psycopg.Connection,
    asset_id: int,
    first: datetime,
    end: datetime,
    limit: int,
    after: GapPlace | None = None,
) -> list[Gap]:
    """Return gaps that touch a time, the newest first."""
    place = after or (None, None, None)
    with connection.cursor(row_factory=class_row(Gap)) as cursor:
        return cursor.execute(
            "select from_at, outbox_id, sequence, to_at, samples, reason, received_at "
            "from telemetry_gap "
            "where asset_id = %(asset)s and from_at < %(end)s and to_at >= %(first)s "
            "and (%(at)s::timestamptz is null or (from_at, outbox_id, sequence) < "
            "(%(at)s, %(outbox)s::text, %(sequence)s::numeric)) "
            "order by from_at desc, outbox_id desc, sequence desc limit %(limit)s",
            {
                "asset": asset_id,
                "first": first,
                "end": end,
                "at": place[0],
                "outbox": place[1],
                "sequence": place[2],
                "limit": limit,
            },
        ).fetchall()


def list_connections(
    connection: psycopg.Connection,
    asset_id: int,
    first: datetime,
    end: datetime,
    limit: int,
    after: ConnectedPlace | None = None,
) -> list[Connected]:
    """Return what happened to connections in a time, the newest first."""
    place = after or (None, None, None, None)
    with connection.cursor(row_factory=class_row(Connected)) as cursor:
        return cursor.execute(
            "select at, event, reason, message, epoch::text, peer, serial_number, "
            "replica, log_id, log_offset, entry_index from connection_event "
            "where asset_id = %(asset)s and at >= %(first)s and at < %(end)s "
            "and (%(at)s::timestamptz is null or (at <= %(at)s and "
            "(at, log_id, log_offset, entry_index) < "
            "(%(at)s, %(log)s::text, %(offset)s::bigint, %(index)s::integer))) "
            "order by at desc, log_id desc, log_offset desc, entry_index desc limit %(limit)s",
            {
                "asset": asset_id,
                "first": first,
                "end": end,
                "at": place[0],
                "log": place[1],
                "offset": place[2],
                "index": place[3],
                "limit": limit,
            },
        ).fetchall()


def list_measurements(
    connection: psycopg.Connection, asset_id: int, first: datetime, end: datetime, limit: int
) -> list[str]:
    """Return the names of what was measured in a time and has no column, by name."""
    rows = connection.execute(
        """
        with recursive found as (
          (
            select name from measurement
            where asset_id = %(asset)s and ts >= %(first)s and ts < %(end)s
            order by name limit 1
          )
          union all
          select next.name from found cross join lateral (
            select name from measurement
            where asset_id = %(asset)s and ts >= %(first)s and ts < %(end)s and name > found.name
            order by name limit 1
          ) next
        )
        select name from found limit %(limit)s
        """,
        {"asset": asset_id, "first": first, "end": end, "limit": limit},
        prepare=False,
    ).fetchall()
    return [name for (name,) in rows]


def read_measurement(
    connection: psycopg.Connection,
    asset_id: int,
    name: str,
    first: datetime,
    end: datetime,
    limit: int,
) -> Values:
    """Return values from ``first`` up to but without ``end``; at most the first ``limit``."""
    rows = connection.execute(
        "select ts, value from measurement "
        "where asset_id = %s and name = %s and ts >= %s and ts < %s order by ts limit %s",
        (asset_id, name, first, end, limit),
        prepare=False,
        binary=True,
    ).fetchall()
    times, values = zip(*rows, strict=True) if rows else ((), ())
    return Values(times, values)


def list_setpoints(
    connection: psycopg.Connection, key: AssetKey, first: datetime, end: datetime
) -> list[HeldSetpoint]:
    """Return the setpoints that a device had in a time, in order; at most the newest of them."""
    text = (
        "select dispatch_uid, dispatch_name, applied_at, "  # noqa: S608  # our own names
        "coalesce(reverted_at, ended_at) as until, applied_watts as watts "
        f"from {lines_of(connection)} where namespace = %(namespace)s and asset_name = %(name)s "
        "and asset_uid = %(uid)s and first_at >= %(since)s and first_at < %(end)s "
        "and applied_at < %(end)s and coalesce(reverted_at, ended_at, 'infinity') > %(first)s "
        "order by applied_at desc limit %(limit)s"
    )
    facts = {
        **key._asdict(),
        "since": first - LONGEST_AGO,
        "first": first,
        "end": end,
        "limit": MOST_SETPOINTS,
    }
    with connection.cursor(row_factory=class_row(HeldSetpoint)) as cursor:
        return cursor.execute(text.encode(), facts).fetchall()[::-1]


def dropped_before(connection: psycopg.Connection) -> datetime | None:
    """Return when the samples that retention left begin; None = there was no retention yet."""
    row = connection.execute(
        "select dropped_before from retention where dropped_before > '-infinity'"
    ).fetchone()
    return row[0] if row else None
