"""What the log holds goes into the database, together with how far that is."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import Self

import numpy as np
import psycopg
import structlog
from numpy.typing import NDArray
from psycopg import errors, sql

from derops.errors import DeropsError
from derops_headend.storage import metrics
from derops_headend.storage.engines import days_ahead, detect
from derops_headend.storage.merging import KeyedTable, Merged, merge
from derops_headend.storage.migrating import migrate
from derops_headend.storage.rolling_up import mark, minutes_of, roll_up
from derops_headend.writing.converting import clean, convert
from derops_headend.writing.encoding import COLUMNS, encode_samples
from derops_headend.writing.rows import (
    QUANTITIES,
    AssetKey,
    Batch,
    Measurements,
    Quarantined,
    Source,
)

TELEMETRY = KeyedTable(
    name="telemetry",
    key=("asset_id", "ts"),
    compared=tuple(QUANTITIES.values()),
    others=("clock_offset_seconds", "received_at"),
)
MEASUREMENT = KeyedTable(name="measurement", key=("asset_id", "name", "ts"), compared=("value",))

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_CONNECT_SECONDS = 5
_KEEP_SECONDS = 3600.0
ROLL_UP_MINUTES = 2000
_FAULTS_OF_DATA = (psycopg.DataError, psycopg.IntegrityError, errors.ProgramLimitExceeded)
_COPY = sql.SQL("copy telemetry ({}) from stdin (format binary)").format(
    sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
)
_EVENT = """
    insert into dispatch_event as old (
      event_id, asset_id, dispatch_uid, dispatch_name, actor, phase, reason, message, at,
      received_at, report, report_ledger_id, report_sequence, report_received_at
    ) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s::jsonb, %s, %s, %s)
    on conflict (event_id) do update set
      report = excluded.report,
      report_ledger_id = excluded.report_ledger_id,
      report_sequence = excluded.report_sequence,
      report_received_at = excluded.report_received_at
    where excluded.report is not null and (
      old.report is null
      or case when old.report_ledger_id = excluded.report_ledger_id
        then excluded.report_sequence > old.report_sequence
        else excluded.report_received_at > old.report_received_at end
    )
"""
_CONNECTION = """
    insert into connection_event (
      log_id, log_offset, entry_index, asset_id, event, reason, message, epoch, peer,
      serial_number, replica, at
    ) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing
"""
_GAP = """
    insert into telemetry_gap (
      asset_id, outbox_id, sequence, from_at, to_at, samples, reason, received_at
    ) values (%s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing
"""
_QUARANTINE = """
    insert into quarantine (
      log_id, log_offset, entry_index, kind, namespace, name, uid, reason, detail, body,
      received_at
    ) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing
"""


class OffsetMovedError(DeropsError):
    """Another writer of the same log committed in between; nothing of this round is stored."""

    retryable = True


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one transaction stored."""

    samples: int = 0
    measurements: int = 0
    duplicates: int = 0
    events: int = 0
    connections: int = 0
    gaps: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            samples=self.samples + other.samples,
            measurements=self.measurements + other.measurements,
            duplicates=self.duplicates + other.duplicates,
            events=self.events + other.events,
            connections=self.connections + other.connections,
            gaps=self.gaps + other.gaps,
            quarantined=self.quarantined + other.quarantined,
        )


class Database:
    """One connection of one writer, for one shard of one log."""

    def __init__(
        self,
        connection: psycopg.Connection,
        log_id: str,
        shard: int = 0,
        *,
        retention_days: int = 0,
    ) -> None:
        """Take a connection in autocommit mode to a migrated database.

        Args:
            connection: Of this object alone.
            log_id: The log whose entries are stored.
            shard: Of the log.
            retention_days: How long telemetry is kept; 0 = for ever. Roll-ups and history are.
        """
        self._connection = connection
        self._engine = detect(connection)
        self._retention_days = retention_days
        self._keep_at = 0.0
        self._log_id = log_id
        self._shard = shard
        self._asset_ids: dict[AssetKey, int] = {}

    @property
    def engine(self) -> str:
        """How telemetry lies in the database, for people."""
        return self._engine.description

    @classmethod
    def connect(cls, url: str, log_id: str, shard: int = 0, *, retention_days: int = 0) -> Self:
        """Connect, and bring the schema to the newest version.

        Raises:
            SchemaTooNewError: A newer program wrote the database.
            psycopg.Error: There is no database, or it refused.
        """
        connection = psycopg.connect(
            url,
            autocommit=True,
            connect_timeout=_CONNECT_SECONDS,
            application_name="derops-writer",
            client_encoding="utf8",
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
            tcp_user_timeout=30_000,
        )
        try:
            # A writer that vanished must not hold its offset's lock for long.
            connection.execute("set idle_in_transaction_session_timeout = '60s'")
            migrate(connection)
            # What takes longer waits for a lock that somebody forgot, or for a sick disk.
            connection.execute("set statement_timeout = '60s'")
            database = cls(connection, log_id, shard, retention_days=retention_days)
            database.maintain()
        except BaseException:
            connection.close()
            raise
        return database

    def maintain(self) -> None:
        """Roll up what is due, a bounded step of it; now and then drop what is too old."""
        now = datetime.now(UTC)
        metrics.MINUTES_ROLLED_UP.inc(roll_up(self._connection, now, ROLL_UP_MINUTES))
        if time.monotonic() >= self._keep_at:
            self._keep_at = time.monotonic() + _KEEP_SECONDS
            self._engine.prepare(self._connection, days_ahead(now))
            if self._retention_days:
                self._drop_before((now - timedelta(days=self._retention_days)).date())

    def _drop_before(self, day: date) -> None:
        """Drop telemetry that is all older than ``day``, and never what is to be rolled up."""
        row = self._connection.execute(
            "select (min(bucket) at time zone 'UTC')::date from roll_up_due"
        ).fetchone()
        if row is not None and row[0] is not None:
            day = min(day, row[0])
        dropped = self._engine.drop_before(self._connection, day)
        if dropped:
            metrics.DAYS_DROPPED.inc(dropped)
            structlog.get_logger("storage").info("telemetry.dropped", before=str(day), days=dropped)

    def check(self) -> None:
        """Ask the server for a sign of life."""
        self._connection.execute("select 1")

    def close(self) -> None:
        """Close the connection; what is not committed is undone."""
        self._connection.close()

    def committed(self) -> int:
        """Return the offset up to which the log is in the database."""
        row = self._connection.execute(
            "select committed_offset from log_offset where log_id = %s and shard = %s",
            (self._log_id, self._shard),
        ).fetchone()
        return int(row[0]) if row else 0

    def store(
        self,
        sources: Sequence[Source],
        *,
        after: int,
        through: int,
        missing: Sequence[tuple[int, int]] = (),
    ) -> Tally:
        """Store entries and the offset in one transaction: all of it, once, or nothing.

        Args:
            sources: The entries of the records that follow ``after``, to ``through``.
            after: What ``committed`` is.
            through: What it becomes.
            missing: First and last offset of records that were not in the log; for the record.

        Raises:
            OffsetMovedError: ``after`` is not what is committed.
            psycopg.Error: The outcome may be unknown; ``committed`` tells.
        """
        batch = convert(sources)
        # Before the transaction: a new partition locks readers out until its commit.
        self._engine.prepare(self._connection, batch.days())
        try:
            with self._connection.transaction():
                self._lock_offset(after)
                tally = self._store_sources(sources, batch)
                for first, last in missing:
                    tally.quarantined["RecordsMissing"] += self._note_missing(first, last)
                self._connection.execute(
                    "update log_offset set committed_offset = %s, updated_at = now() "
                    "where log_id = %s and shard = %s",
                    (through, self._log_id, self._shard),
                )
        except BaseException:
            self._asset_ids.clear()  # some of them may have been rolled back
            raise
        return tally

    def _lock_offset(self, expected: int) -> None:
        place = (self._log_id, self._shard)
        self._connection.execute(
            "insert into log_offset (log_id, shard, committed_offset) values (%s, %s, 0) "
            "on conflict do nothing",
            place,
        )
        row = self._connection.execute(
            "select committed_offset from log_offset where log_id = %s and shard = %s for update",
            place,
        ).fetchone()
        found = row[0] if row else 0
        if found != expected:
            raise OffsetMovedError(f"offset {found} is committed, not {expected}")

    def _store_sources(self, sources: Sequence[Source], batch: Batch) -> Tally:
        """Store entries; where the database refuses a value, only the entry that has it."""
        try:
            with self._connection.transaction():
                return self._store_batch(batch)
        except _FAULTS_OF_DATA as error:
            self._asset_ids.clear()
            if len(sources) == 1:
                refused = Quarantined(source=0, reason="DatabaseRefused", detail=clean(str(error)))
                return Tally(quarantined=self._quarantine(sources, [refused]))
        middle = len(sources) // 2
        left, right = sources[:middle], sources[middle:]
        return self._store_sources(left, convert(left)) + self._store_sources(right, convert(right))

    def _store_batch(self, batch: Batch) -> Tally:
        ids = self._resolve_assets(list(batch.assets))
        tally = Tally(events=len(batch.events), gaps=len(batch.gaps))
        tally.connections = len(batch.connections)
        differing = self._store_samples(batch, ids, tally)
        differing += self._store_measurements(batch.measurements, ids, tally)
        self._store_events(batch, ids)
        conflicts = [
            Quarantined(
                source=source,
                reason="ConflictingSamples",
                detail=f"{count} samples differ from what is stored of the same instants",
            )
            for source, count in sorted(differing.items())
        ]
        tally.quarantined = self._quarantine(batch.sources, [*batch.quarantined, *conflicts])
        return tally

    def _resolve_assets(self, keys: list[AssetKey]) -> NDArray[np.int64]:
        unknown = sorted(key for key in keys if key not in self._asset_ids)
        if unknown:
            columns = [list(column) for column in zip(*unknown, strict=True)]
            self._connection.execute(
                "insert into asset (namespace, name, uid) "
                "select * from unnest(%s::text[], %s::text[], %s::text[]) on conflict do nothing",
                columns,
            )
            rows = self._connection.execute(
                "select namespace, name, uid, asset_id from asset where (namespace, name, uid) in "
                "(select * from unnest(%s::text[], %s::text[], %s::text[]))",
                columns,
            ).fetchall()
            self._asset_ids |= {AssetKey(*row[:3]): row[3] for row in rows}
        return np.array([self._asset_ids[key] for key in keys], "i8")

    def _store_samples(self, batch: Batch, ids: NDArray[np.int64], tally: Tally) -> Counter[int]:
        samples = batch.all_samples()
        if not len(samples):
            return Counter()
        mark(self._connection, minutes_of(samples, ids))
        try:
            with (
                self._connection.transaction(),
                self._connection.cursor() as cursor,
                cursor.copy(_COPY) as copy,
            ):
                copy.write(encode_samples(samples, ids))
            tally.samples += len(samples)
            return Counter()
        except errors.UniqueViolation:
            numbered = encode_samples(samples, ids, numbered=True)
        merged = merge(self._connection, TELEMETRY, lambda copy: copy.write(numbered))
        tally.samples += merged.stored
        return _differing(merged, samples["source"].tolist(), tally)

    def _store_measurements(
        self, measurements: list[Measurements], ids: NDArray[np.int64], tally: Tally
    ) -> Counter[int]:
        if not measurements:
            return Counter()
        rows = [
            (each.source, int(ids[each.asset]), each.name, instant(ts_us), value)
            for each in measurements
            for ts_us, value in zip(each.ts_us.tolist(), each.values.tolist(), strict=True)
        ]

        def load(copy: psycopg.Copy) -> None:
            copy.set_types(["int4", "int8", "text", "timestamptz", "float8"])
            for number, row in enumerate(rows):
                copy.write_row((number, *row[1:]))

        merged = merge(self._connection, MEASUREMENT, load)
        tally.measurements += merged.stored
        return _differing(merged, [row[0] for row in rows], tally)

    def _store_events(self, batch: Batch, ids: NDArray[np.int64]) -> None:
        with self._connection.cursor() as cursor:
            if batch.events:
                cursor.executemany(
                    _EVENT,
                    [
                        (
                            row.event_id, int(ids[row.asset]), row.dispatch_uid, row.dispatch_name,
                            row.actor, row.phase, row.reason, row.message, instant(row.at_us),
                            instant(row.received_us),
                            *(
                                (row.report.json, row.report.ledger_id, row.report.sequence,
                                 instant(row.received_us))
                                if row.report
                                else (None, None, None, None)
                            ),
                        )
                        for row in batch.events
                    ],
                )  # fmt: skip
            if batch.connections:
                cursor.executemany(
                    _CONNECTION,
                    [
                        (
                            *self._place(batch.sources[row.source]), int(ids[row.asset]), row.event,
                            row.reason, row.message, row.epoch, row.peer, row.serial_number,
                            row.replica, instant(row.at_us),
                        )
                        for row in batch.connections
                    ],
                )  # fmt: skip
            if batch.gaps:
                cursor.executemany(
                    _GAP,
                    [
                        (
                            int(ids[row.asset]), row.outbox_id, row.sequence, instant(row.from_us),
                            instant(row.to_us), row.samples, row.reason, instant(row.received_us),
                        )
                        for row in batch.gaps
                    ],
                )  # fmt: skip

    def _quarantine(
        self, sources: Sequence[Source], quarantined: Sequence[Quarantined]
    ) -> Counter[str]:
        rows = []
        for each in quarantined:
            source = sources[each.source]
            asset, received_us = source.entry.asset, source.entry.received_us
            names = (clean(asset.namespace), clean(asset.name), clean(asset.uid))
            rows.append(
                (
                    *self._place(source), source.entry.kind, *names, each.reason, each.detail,
                    source.entry.body, _instant_or_none(received_us),
                )
            )  # fmt: skip
        if rows:
            with self._connection.cursor() as cursor:
                cursor.executemany(_QUARANTINE, rows)
        return Counter(each.reason for each in quarantined)

    def _note_missing(self, first: int, last: int) -> int:
        detail = f"records {first} to {last} were not in the log"
        place = (self._log_id, first, -1)
        self._connection.execute(
            _QUARANTINE, (*place, 0, "", "", "", "RecordsMissing", detail, b"", None)
        )
        return 1

    def _place(self, source: Source) -> tuple[str, int, int]:
        return self._log_id, source.offset, source.entry_index


def instant(instant_us: int) -> datetime:
    """Return microseconds since 1970 as a datetime, exactly."""
    return _EPOCH + timedelta(microseconds=instant_us)


def _instant_or_none(instant_us: int) -> datetime | None:
    try:
        return instant(instant_us)
    except OverflowError:
        return None


def _differing(merged: Merged, sources: Sequence[int], tally: Tally) -> Counter[int]:
    tally.duplicates += len(sources) - merged.stored - len(merged.differing)
    return Counter(sources[n] for n in merged.differing)
