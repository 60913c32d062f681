"""What keeps the database in order while the writer runs: partitions, roll-ups, retention, history.

No work of it may hold up the writer. Work that fails, because a backup or a long query holds a lock
or for any other reason, is put off and tried again.
"""

import time
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta

import psycopg
import structlog
from psycopg import sql

from derops_headend.storage import metrics
from derops_headend.storage.audit_retention import drop_months, prepare_months
from derops_headend.storage.dispatches import fill
from derops_headend.storage.engines import Engine, days_ahead
from derops_headend.storage.minutes import HOLD_SECONDS
from derops_headend.storage.roll_ups import oldest_due, roll_up

STATEMENT_MILLISECONDS = 60_000
"""A statement that takes longer waits for a forgotten lock, or for a sick disk."""

ROLL_UP_MINUTES = 500
_FEWEST_MINUTES = 20

_LIMITS = {"lock_timeout": (1000, 0), "statement_timeout": (10_000, STATEMENT_MILLISECONDS)}
"""How long to wait for a lock, in ms, in maintenance and outside: whoever waits blocks others."""

DELETED_AT_ONCE = 5000
_AGED = {"connection_event": "at", "telemetry_gap": "received_at", "quarantine": "at"}
"""Tables that an agent can make grow beside telemetry, and what tells how old a row is."""

_STEP_SECONDS = 0.25
_KEEP_SECONDS = 3600.0
_AGAIN_SECONDS = 60.0


class Keeper:
    """Does a bounded step at each call of ``step``."""

    def __init__(
        self,
        connection: psycopg.Connection,
        engine: Engine,
        *,
        retention_days: int = 0,
        audit_retention_days: int = 0,
    ) -> None:
        """Take a connection in autocommit mode.

        Args:
            connection: To a migrated database.
            engine: The engine of that database.
            retention_days: How long telemetry, and what is told of it, is kept; 0 = for ever.
            audit_retention_days: How long the audit is kept, whole months; 0 = for ever.
        """
        self._connection, self._engine = connection, engine
        self._retention_days = retention_days
        self._audit_retention_days = audit_retention_days
        self._keep_at = 0.0
        self._minutes = ROLL_UP_MINUTES
        self._aging: list[str] = []
        self._is_filled = False
        self._log = structlog.get_logger("storage")

    def step(self, now: datetime) -> None:
        """Roll up a part of what is due, and give rows to a part of the dispatches without one.

        Now and then make partitions and drop what is too old.

        Raises:
            psycopg.Error: The connection is lost.
        """
        done = self.attempt(lambda: self._roll_up(now))
        wanted = 2 * self._minutes if done else self._minutes // 2
        self._minutes = min(max(wanted, _FEWEST_MINUTES), ROLL_UP_MINUTES)
        day = (now - timedelta(days=self._retention_days)).date()
        if time.monotonic() >= self._keep_at:
            done = self.attempt(lambda: self._engine.prepare(self._connection, days_ahead(now)))
            done = self.attempt(lambda: self._keep_audit(now)) and done
            if self._retention_days:
                done = self.attempt(lambda: self.drop_before(day)) and done
                self._aging = list(_AGED)
            self._keep_at = time.monotonic() + (_KEEP_SECONDS if done else _AGAIN_SECONDS)
        if self._aging:
            self.attempt(lambda: self._delete_before(day))
        if not self._is_filled:
            self.attempt(self._fill)

    def drop_before(self, day: date) -> None:
        """Drop telemetry and measurements that are all older than ``day`` (UTC).

        Samples that a roll-up still needs stay. Nothing can be stored meanwhile, or it might be
        dropped before it is rolled up.
        """
        with self._connection.transaction():
            self._connection.execute("lock table roll_up_due in share row exclusive mode")
            due = oldest_due(self._connection)
            if due is not None:
                day = min(day, (due.astimezone(UTC) - timedelta(seconds=HOLD_SECONDS)).date())
            self._connection.execute(
                "update retention set dropped_before = greatest(dropped_before, %s::timestamptz)",
                (datetime(day.year, day.month, day.day, tzinfo=UTC),),
            )
            dropped = self._engine.drop_before(self._connection, day)
        if dropped:
            metrics.PARTITIONS_DROPPED.inc(dropped)
            self._log.info("telemetry.dropped", before=str(day), days=dropped)

    def _keep_audit(self, now: datetime) -> None:
        prepare_months(self._connection, now)
        if self._audit_retention_days:
            oldest = (now - timedelta(days=self._audit_retention_days)).date()
            drop_months(self._connection, oldest, now)

    def _delete_before(self, day: date) -> None:
        """Delete a bounded part of the rows that are older than ``day``."""
        for table in list(self._aging):
            deleted = self._connection.execute(
                sql.SQL(
                    "delete from {table} where ctid = any(array("
                    "select ctid from {table} where {age} < %s limit %s))"
                ).format(table=sql.Identifier(table), age=sql.Identifier(_AGED[table])),
                (datetime(day.year, day.month, day.day, tzinfo=UTC), DELETED_AT_ONCE),
            ).rowcount
            metrics.ROWS_DELETED.inc(deleted)
            if deleted < DELETED_AT_ONCE:
                self._aging.remove(table)

    def _roll_up(self, now: datetime) -> None:
        end = time.monotonic() + _STEP_SECONDS
        while done := roll_up(self._connection, now, self._minutes):
            metrics.ROLL_UPS.inc(done)
            if time.monotonic() >= end:
                break
        due = oldest_due(self._connection)
        metrics.ROLL_UP_DELAY_SECONDS.set(max(0.0, (now - due).total_seconds()) if due else 0)

    def _fill(self) -> None:
        end = time.monotonic() + _STEP_SECONDS
        while done := fill(self._connection):
            metrics.DISPATCHES_FILLED.inc(done)
            if time.monotonic() >= end:
                break
        self._is_filled = done is None
        metrics.HISTORY_FILLING.set(not self._is_filled)

    def attempt(self, work: Callable[[], None]) -> bool:
        """Do some work; return whether it was done."""
        self._limit(0)
        try:
            work()
        except psycopg.Error as error:
            if self._connection.closed:
                raise
            metrics.PUT_OFF.inc()
            self._log.warning("maintenance.put_off", why=str(error).partition("\n")[0])
            return False
        finally:
            if not self._connection.closed:
                self._limit(1)
        return True

    def _limit(self, which: int) -> None:
        for name, milliseconds in _LIMITS.items():
            self._connection.execute(
                "select set_config(%s, %s, false)", (name, str(milliseconds[which]))
            )
