"""Stores what the log holds, in one transaction with the offset that is reached."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Self

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import errors, sql

from derops.errors import DeropsError
from derops.instants import moment_of
from derops_headend.storage.dispatches import MOST_STEPS, EndedRow, find_ended, find_full
from derops_headend.storage.engines import detect
from derops_headend.storage.history_rows import note_missing, quarantine, record
from derops_headend.storage.maintenance import STATEMENT_MILLISECONDS, Keeper
from derops_headend.storage.merge import KeyedTable, Merged, merge
from derops_headend.storage.roll_ups import mark, minutes_of
from derops_headend.storage.schema import migrate
from derops_headend.writing.binary_copy import COLUMNS, encode_samples
from derops_headend.writing.conversion import convert
from derops_headend.writing.refusals import clean
from derops_headend.writing.rows import (
    QUANTITIES,
    AssetKey,
    Batch,
    LogSource,
    MeasurementRows,
    Quarantined,
)

TELEMETRY = KeyedTable(
    name="telemetry",
    key=("asset_id", "ts"),
    compared=tuple(QUANTITIES.values()),
    others=("clock_offset_seconds", "received_at"),
)
MEASUREMENT = KeyedTable(name="measurement", key=("asset_id", "name", "ts"), compared=("value",))

_CONNECT_SECONDS = 5
_FAULTS_OF_DATA = (psycopg.DataError, psycopg.IntegrityError, errors.ProgramLimitExceeded)
_COPY = sql.SQL("copy telemetry ({}) from stdin (format binary)").format(
    sql.SQL(", ").join(map(sql.Identifier, COLUMNS))
)


class OffsetMovedError(DeropsError):
    """Another writer of the same log committed in between; nothing of this round is stored."""


class _NoPartitionError(Exception):
    """A day has no partition, though it was made or seen."""


@dataclass(slots=True, kw_only=True)
class StoredCount:
    """What one transaction stored."""

    samples: int = 0
    measurements: int = 0
    duplicates: int = 0
    events: int = 0
    connections: int = 0
    gaps: int = 0
    quarantined: Counter[str] = field(default_factory=Counter)
    ended: tuple[EndedRow, ...] = ()
    """The dispatches whose end is told by what was stored."""

    def __add__(self, other: "StoredCount") -> "StoredCount":
        return StoredCount(
            samples=self.samples + other.samples,
            measurements=self.measurements + other.measurements,
            duplicates=self.duplicates + other.duplicates,
            events=self.events + other.events,
            connections=self.connections + other.connections,
            gaps=self.gaps + other.gaps,
            quarantined=self.quarantined + other.quarantined,
            ended=self.ended + other.ended,
        )


class WriterDatabase:
    """One connection of one writer, for one shard of one log."""

    def __init__(
        self,
        connection: psycopg.Connection,
        log_id: str,
        shard: int = 0,
        *,
        retention_days: int = 0,
        audit_retention_days: int = 0,
    ) -> None:
        """Take a connection in autocommit mode to a migrated database.

        Args:
            connection: A connection that nobody else uses.
            log_id: The log whose entries are stored.
            shard: The shard of that log.
            retention_days: How long telemetry is kept; 0 = for ever. Roll-ups and history are.
            audit_retention_days: How long the audit is kept; 0 = for ever.
        """
        self._connection = connection
        self._engine = detect(connection)
        self._keeper = Keeper(
            connection,
            self._engine,
            retention_days=retention_days,
            audit_retention_days=audit_retention_days,
        )
        self._log_id = log_id
        self._shard = shard
        self._asset_ids: dict[AssetKey, int] = {}

    @property
    def engine(self) -> str:
        """How telemetry lies in the database, for people."""
        return self._engine.description

    @classmethod
    def connect(
        cls,
        url: str,
        log_id: str,
        shard: int = 0,
        *,
        retention_days: int = 0,
        audit_retention_days: int = 0,
    ) -> Self:
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
            # A writer that vanished must not hold the lock of its offset for long.
            connection.execute("set idle_in_transaction_session_timeout = '60s'")
            migrate(connection)
            connection.execute(f"set statement_timeout = {STATEMENT_MILLISECONDS}")
            database = cls(
                connection,
                log_id,
                shard,
                retention_days=retention_days,
                audit_retention_days=audit_retention_days,
            )
            database.maintain()
        except BaseException:
            connection.close()
            raise
        return database

    def maintain(self) -> None:
        """Do a bounded step of roll-ups; now and then make partitions and drop what is too old."""
        self._keeper.step(datetime.now(UTC))

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
        sources: Sequence[LogSource],
        *,
        after: int,
        through: int,
        missing: Sequence[tuple[int, int]] = (),
    ) -> StoredCount:
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
        try:
            return self._store(sources, after, through, missing)
        except _NoPartitionError:
            # Another writer's retention, or a person, dropped one that we knew.
            self._engine.forget()
            return self._store(sources, after, through, missing)

    def _store(
        self,
        sources: Sequence[LogSource],
        after: int,
        through: int,
        missing: Sequence[tuple[int, int]],
    ) -> StoredCount:
        batch = convert(sources)
        self._engine.prepare(self._connection, batch.days())
        try:
            with self._connection.transaction():
                self._lock_offset(after)
                tally = self._store_sources(sources, batch)
                for first, last in missing:
                    note_missing(self._connection, self._log_id, first, last)
                    tally.quarantined["RecordsMissing"] += 1
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

    def _store_sources(self, sources: Sequence[LogSource], batch: Batch) -> StoredCount:
        """Store entries; where the database refuses a value, only the entry that has it."""
        try:
            with self._connection.transaction():
                return self._store_batch(batch)
        except _FAULTS_OF_DATA as error:
            if _lacks_partition(error):
                raise _NoPartitionError from error
            self._asset_ids.clear()
            if len(sources) == 1:
                refused = Quarantined(source=0, reason="DatabaseRefused", detail=clean(str(error)))
                return StoredCount(quarantined=self._quarantine(sources, [refused]))
        middle = len(sources) // 2
        left, right = sources[:middle], sources[middle:]
        return self._store_sources(left, convert(left)) + self._store_sources(right, convert(right))

    def _store_batch(self, batch: Batch) -> StoredCount:
        ids = self._resolve_assets(list(batch.assets))
        endless = self._leave_out_endless(batch)
        tally = StoredCount(events=len(batch.events), gaps=len(batch.gaps))
        tally.connections = len(batch.connections)
        differing = self._store_samples(batch, ids, tally)
        differing += self._store_measurements(batch.measurements, ids, tally)
        record(self._connection, self._log_id, batch, ids)
        if ended := batch.ended():
            tally.ended = find_ended(self._connection, ended)
        conflicts = [
            Quarantined(
                source=source,
                reason="ConflictingSamples",
                detail=f"{count} samples differ from what is stored of the same instants",
            )
            for source, count in sorted(differing.items())
        ]
        refused = [*batch.quarantined, *conflicts, *endless]
        tally.quarantined = self._quarantine(batch.sources, refused)
        return tally

    def _leave_out_endless(self, batch: Batch) -> list[Quarantined]:
        """Take out what agents say of dispatches that have too many steps; return it."""
        subjects = [f"{asset.namespace}/{asset.name}" for asset in batch.assets]
        told = {
            (row.dispatch_uid, subjects[row.asset]) for row in batch.events if row.actor == "Agent"
        }
        full = find_full(self._connection, told) if told else set()
        if not full:
            return []
        kept, refused = [], {}
        for row in batch.events:
            if row.actor == "Agent" and (row.dispatch_uid, subjects[row.asset]) in full:
                refused[row.source] = f"{row.dispatch_uid} has {MOST_STEPS} steps already, or more"
            else:
                kept.append(row)
        batch.events = kept
        return [
            Quarantined(source=source, reason="TooManySteps", detail=detail)
            for source, detail in refused.items()
        ]

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

    def _quarantine(
        self, sources: Sequence[LogSource], quarantined: Sequence[Quarantined]
    ) -> Counter[str]:
        return quarantine(self._connection, self._log_id, sources, quarantined)

    def _store_samples(
        self, batch: Batch, ids: NDArray[np.int64], tally: StoredCount
    ) -> Counter[int]:
        samples = batch.samples
        if not len(samples):
            return Counter()
        mark(self._connection, minutes_of(samples, ids))
        try:
            with (
                self._connection.transaction(),
                self._connection.cursor() as cursor,
                cursor.copy(_COPY) as copy,
            ):
                for part in encode_samples(samples, ids):
                    copy.write(part)
            tally.samples += len(samples)
            return Counter()
        except errors.UniqueViolation:
            pass

        def load(copy: psycopg.Copy) -> None:
            for part in encode_samples(samples, ids, numbered=True):
                copy.write(part)

        merged = merge(self._connection, TELEMETRY, load)
        tally.samples += merged.stored
        return _differing(merged, samples.source.tolist(), tally)

    def _store_measurements(
        self, measurements: list[MeasurementRows], ids: NDArray[np.int64], tally: StoredCount
    ) -> Counter[int]:
        if not measurements:
            return Counter()
        rows = [
            (each.source, int(ids[each.asset]), each.name, moment_of(ts_us), value)
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


def _differing(merged: Merged, sources: Sequence[int], tally: StoredCount) -> Counter[int]:
    tally.duplicates += len(sources) - merged.stored - len(merged.differing)
    return Counter(sources[n] for n in merged.differing)


def _lacks_partition(error: psycopg.Error) -> bool:
    """Tell a row without a partition from one that breaks a constraint: that has a name."""
    return isinstance(error, errors.CheckViolation) and error.diag.constraint_name is None
