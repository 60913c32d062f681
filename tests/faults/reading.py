"""What the headend holds, for the checker: first the log, then the database."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
from psycopg import Connection
from tests.faults.checker import GapRow, Kept, Row, Stored
from tests.field.journal import (
    COLUMNS,
    Gap,
    Journal,
    Point,
    hash_of,
    hash_of_value,
    sent_batch,
    sent_gap,
)

from derops.wire.v1 import agent_pb2, log_pb2
from derops_headend.eventlog.ports import LogReader

_US = "(extract(epoch from {}) * 1000000)::bigint"
_TELEMETRY = (
    f"select {_US.format('ts')}, {_US.format('received_at')}, {', '.join(COLUMNS)} "
    "from telemetry where asset_id = any(%s) and ts > %s"
)
_MEASUREMENT = (
    f"select name, {_US.format('ts')}, value from measurement where asset_id = any(%s) and ts > %s"
)
_GAPS = (
    f"select outbox_id, sequence, {_US.format('from_at')}, {_US.format('to_at')}, samples, reason "
    "from telemetry_gap where asset_id = any(%s) and sequence > %s"
)
_COUNTS = (
    "select (select count(*) from telemetry where asset_id = any(%(ids)s) and ts <= %(ts)s) + "
    "(select count(*) from measurement where asset_id = any(%(ids)s) and ts <= %(ts)s), "
    "(select count(*) from telemetry_gap where asset_id = any(%(ids)s) and sequence <= %(last)s)"
)
_NOT_FINITE = "select count(*) from telemetry where " + " or ".join(
    f"{name} in ('NaN', 'Infinity', '-Infinity')" for name in COLUMNS
)


def read(url: str, log: LogReader, journals: Sequence[Journal], hostile_uid: str) -> Stored:
    """Return what log and database hold of the honest; it is a view of one moment. Blocks."""
    logged = read_log(log)
    with psycopg.connect(url) as connection:
        connection.execute("set transaction isolation level repeatable read read only")
        row = connection.execute(
            "select committed_offset from log_offset where log_id = %s", (log.log_id,)
        ).fetchone()
        committed = row[0] if row else 0
        ids: dict[str, list[int]] = {journal.asset_uid: [] for journal in journals}
        for asset_id, uid in connection.execute("select asset_id, uid from asset").fetchall():
            if uid != hostile_uid:
                ids.setdefault(uid, []).append(asset_id)
        rows: list[Row] = []
        gaps: list[GapRow] = []
        counts = {}
        for uid, own in ids.items():
            checked = [journal.checked for journal in journals if journal.asset_uid == uid]
            until = _instant(max([0, *(each.until_us for each in checked)]))
            last = max([0, *(each.through for each in checked)])
            rows += _read_rows(connection, uid, own, until)
            gaps += _read_gaps(connection, uid, own, last)
            found = connection.execute(_COUNTS, {"ids": own, "ts": until, "last": last}).fetchone()
            counts[uid] = found or (0, 0)
        return Stored(
            rows=rows,
            gaps=gaps,
            quarantined=_read_quarantine(connection, hostile_uid),
            logged=[
                kept for offset, kept in logged if offset > committed and kept.asset_uid in ids
            ],
            counts_before=counts,
            holes=_read_holes(connection),
        )


def last_offsets(url: str, log: LogReader) -> tuple[int, int]:
    """Return how far the writer is, and how far the log. Blocks."""
    with psycopg.connect(url) as connection:
        row = connection.execute(
            "select committed_offset from log_offset where log_id = %s", (log.log_id,)
        ).fetchone()
    return (row[0] if row else 0), log.bounds()[1]


def read_log(log: LogReader) -> list[tuple[int, Kept]]:
    """Return telemetry and gaps in the log with offsets; what is trimmed meanwhile is stored."""
    after, found = 0, []
    while (bounds := log.bounds())[1] > after:
        after = max(after, bounds[0] - 1)  # the writer trims meanwhile
        for offset, record in log.read(after):
            found += [
                (offset, _kept(entry.kind, entry.asset.uid, entry.body))
                for entry in record.entries
                if entry.kind in (log_pb2.TELEMETRY, log_pb2.GAP) and not entry.refused
            ]
            after = offset
    return found


def _kept(kind: int, uid: str, body: bytes) -> Kept:
    message: Any
    if kind == log_pb2.GAP:
        message = agent_pb2.Gap.FromString(body)
        sent = sent_gap(message)
    else:
        message = agent_pb2.TelemetryBatch.FromString(body)
        sent = sent_batch(message)
    return Kept(asset_uid=uid, outbox_id=message.outbox_id, sequence=message.sequence, sent=sent)


def _read_rows(connection: Connection, uid: str, ids: list[int], until: datetime) -> list[Row]:
    with connection.cursor(binary=True) as cursor:
        rows = [
            Row(
                asset_uid=uid,
                point=Point("", ts_us),
                value_hash=hash_of(values),
                received_us=received_us,
            )
            for ts_us, received_us, *values in cursor.execute(_TELEMETRY, (ids, until))
        ]
        rows += [
            Row(asset_uid=uid, point=Point(name, ts_us), value_hash=hash_of_value(value))
            for name, ts_us, value in cursor.execute(_MEASUREMENT, (ids, until))
        ]
    return rows


def _read_gaps(connection: Connection, uid: str, ids: list[int], after: int) -> list[GapRow]:
    return [
        GapRow(asset_uid=uid, outbox_id=outbox_id, sequence=int(sequence), gap=Gap(*gap))
        for outbox_id, sequence, *gap in connection.execute(_GAPS, (ids, after))
    ]


def _read_quarantine(connection: Connection, hostile_uid: str) -> list[Kept]:
    rows = connection.execute(
        "select kind, uid, body from quarantine where uid <> %s and reason <> 'RecordsMissing'",
        (hostile_uid,),
    )
    return [_kept(*row) for row in rows]


def _read_holes(connection: Connection) -> list[str]:
    holes = [
        row[0]
        for row in connection.execute(
            "select detail from quarantine where reason = 'RecordsMissing'"
        )
    ]
    (odd,) = connection.execute(_NOT_FINITE).fetchone() or (0,)
    return [*holes, *([f"{odd} rows have values that are not finite"] if odd else [])]


def _instant(instant_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=instant_us)
