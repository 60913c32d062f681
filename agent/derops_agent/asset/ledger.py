"""The ledger of one asset: what was ordered, what was done, and that nothing is done twice.

A commit is on the disk when a method returns. The random ledger id is made with the file, so that
the headend notices a lost disk.
"""

import secrets
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import TypeAdapter

from derops.sqlite import Schema, transaction
from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent.execution.state import Execution
from derops_agent.storage import open_database

SCHEMA = Schema(2, readable_from=2)
_UPGRADES = ("ALTER TABLE meta ADD COLUMN revision_era INTEGER NOT NULL DEFAULT 0",)
_TABLES = """
CREATE TABLE meta (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  ledger_id TEXT NOT NULL,
  epoch INTEGER NOT NULL DEFAULT 0,
  revision_start_ms INTEGER NOT NULL DEFAULT 0,
  revision_counter INTEGER NOT NULL DEFAULT 0,
  asset BLOB,
  report_sequence INTEGER NOT NULL DEFAULT 0,
  alive_us INTEGER NOT NULL DEFAULT 0,
  boot_id TEXT NOT NULL DEFAULT '',
  revision_era INTEGER NOT NULL DEFAULT 0
);
-- A settled row is a tombstone: its uid is not executed again until keep_until_us.
CREATE TABLE execution (
  uid TEXT PRIMARY KEY,
  order_wire BLOB NOT NULL,
  report BLOB NOT NULL,
  state TEXT NOT NULL,
  settled INTEGER NOT NULL DEFAULT 0,
  keep_until_us INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""
MAX_EPOCH = 2**62
"""No gateway accepts it; it can be stored, and exceeded."""

_STATE = TypeAdapter(Execution)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One execution as it is to be stored; None keeps what is there."""

    execution: Execution
    order: dispatch_pb2.Dispatch | None = None
    report: dispatch_pb2.DispatchReport | None = None

    @property
    def uid(self) -> str:
        """The dispatch it is of."""
        return self.execution.order.uid


@dataclass(frozen=True, slots=True, kw_only=True)
class Alive:
    """When the agent was last known to run, and in which boot."""

    at_us: int
    boot_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredExecution:
    """An execution with the last report that was made of it."""

    execution: Execution
    report: dispatch_pb2.DispatchReport


class Ledger:
    """One file. Calls block, and may come from any thread."""

    def __init__(self, path: Path) -> None:
        """Open or make the file.

        Raises:
            SchemaTooNewError: It is for newer agents.
            sqlite3.Error: It cannot be made or read now, see ``open_database``.
            OSError: The same of its directory.
        """
        self._db = open_database(path, _TABLES, SCHEMA, _UPGRADES)
        self._lock = threading.Lock()  # a statement of one thread must not join another's commit
        try:
            self._db.execute(
                "INSERT OR IGNORE INTO meta (only, ledger_id) VALUES (1, ?)",
                [secrets.token_hex(16)],
            )
        except BaseException:
            self._db.close()
            raise
        self.ledger_id: str = self._meta("ledger_id")
        self._epoch = int(self._meta("epoch"))
        self._tombstones = {
            uid for (uid,) in self._db.execute("SELECT uid FROM execution WHERE settled = 1")
        }

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @property
    def report_sequence(self) -> int:
        """The sequence of the last report that was stored."""
        return int(self._meta("report_sequence"))

    @property
    def alive(self) -> Alive:
        """When the agent last stored anything; at_us is 0 in a new ledger."""
        return Alive(at_us=int(self._meta("alive_us")), boot_id=str(self._meta("boot_id")))

    @property
    def revision(self) -> agent_pb2.Revision:
        """The highest revision of desired state that was taken."""
        return agent_pb2.Revision(
            operator_start_ms=int(self._meta("revision_start_ms")),
            counter=int(self._meta("revision_counter")),
            era=int(self._meta("revision_era")),
        )

    def next_epoch(self, now_ms: int, *, above: int = 0) -> int:
        """Choose the epoch of a connection, greater than all before and ``above``.

        At ``MAX_EPOCH`` it stays; a gateway then names one to go on from. It is stored, or, where
        the disk takes nothing, only remembered: a withdrawal has to get through then as well, and
        the gateway refuses an epoch that is too low.
        """
        with self._lock:
            epoch = max(self._epoch + 1, now_ms, above + 1 if above else 0)
            self._keep_epoch(min(epoch, MAX_EPOCH))
            return self._epoch

    def go_on_from(self, epoch: int) -> None:
        """Have the next epoch follow this one, also where it is lower than those before."""
        with self._lock:
            self._keep_epoch(max(0, min(epoch, MAX_EPOCH)))

    def _keep_epoch(self, epoch: int) -> None:
        self._epoch = epoch
        with suppress(sqlite3.Error):
            self._db.execute("UPDATE meta SET epoch = ?", [epoch])

    def asset(self) -> dispatch_pb2.Asset | None:
        """Return the last configuration of the asset."""
        wire = self._meta("asset")
        return None if wire is None else dispatch_pb2.Asset.FromString(wire)

    def unsettled(self) -> list[StoredExecution]:
        """Return all executions that the headend has not settled."""
        rows = self._db.execute("SELECT state, report FROM execution WHERE settled = 0")
        return [_stored(*row) for row in rows]

    @property
    def tombstones(self) -> int:
        """How many settled executions are remembered; does not block."""
        return len(self._tombstones)

    def may_have_tombstone(self, uid: str) -> bool:
        """Tell whether ``tombstone`` is worth a look; does not block."""
        return uid in self._tombstones

    def tombstone(self, uid: str) -> StoredExecution | None:
        """Return the settled execution of ``uid``, if it is still remembered."""
        row = self._db.execute(
            "SELECT state, report FROM execution WHERE uid = ? AND settled = 1", [uid]
        ).fetchone()
        return None if row is None else _stored(*row)

    def save(
        self,
        entries: Iterable[Entry],
        *,
        alive: Alive,
        asset: dispatch_pb2.Asset | None = None,
        revision: agent_pb2.Revision | None = None,
        settled: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Store all of it or nothing; it is on the disk when this returns.

        Args:
            entries: What changed.
            alive: When this is, by the clock that is believed.
            asset: The configuration, where it is new.
            revision: The desired state, where it is newer.
            settled: By uid, until when only a tombstone is kept. With them those go that have
                been kept long enough.
        """
        forgotten: set[str] = set()

        def write() -> None:
            for entry in entries:
                self._put(entry)
            if settled:
                forgotten.update(self._bury(settled, alive.at_us))
            self._db.execute(
                "UPDATE meta SET alive_us = ?, boot_id = ?", [alive.at_us, alive.boot_id]
            )
            if asset is not None:
                self._db.execute("UPDATE meta SET asset = ?", [asset.SerializeToString()])
            if revision is not None:
                self._db.execute(
                    "UPDATE meta SET revision_start_ms = ?, revision_counter = ?, revision_era = ?",
                    [revision.operator_start_ms, revision.counter, revision.era],
                )

        self._tombstones |= settled.keys()  # before: what is there is never denied
        self._transact(write)
        self._tombstones -= forgotten

    def _put(self, entry: Entry) -> None:
        report, execution = entry.report, entry.execution
        state = _STATE.dump_json(execution)
        order_wire = None if entry.order is None else entry.order.SerializeToString()
        report_wire = None if report is None else report.SerializeToString()
        changed = self._db.execute(
            "UPDATE execution SET state = ?, settled = 0, order_wire = coalesce(?, order_wire), "
            "report = coalesce(?, report) WHERE uid = ?",
            [state, order_wire, report_wire, execution.order.uid],
        ).rowcount
        if not changed:
            self._db.execute(
                "INSERT INTO execution (uid, order_wire, report, state) VALUES (?, ?, ?, ?)",
                [execution.order.uid, order_wire, report_wire, state],
            )
        if report is not None:
            self._db.execute("UPDATE meta SET report_sequence = ?", [report.sequence])

    def _bury(self, settled: Mapping[str, int], now_us: int) -> set[str]:
        """Make tombstones; return the uids of those that are gone."""
        self._db.executemany(
            "UPDATE execution SET settled = 1, keep_until_us = ? WHERE uid = ?",
            [(keep_until_us, uid) for uid, keep_until_us in settled.items()],
        )
        old = "FROM execution WHERE settled = 1 AND keep_until_us < ?"
        forgotten = {uid for (uid,) in self._db.execute(f"SELECT uid {old}", [now_us])}
        self._db.execute(f"DELETE {old}", [now_us])
        return forgotten

    def _meta(self, column: str) -> Any:  # column: one of our own names
        (value,) = self._db.execute(f"SELECT {column} FROM meta").fetchone()  # noqa: S608
        return value

    def _transact(self, write: Callable[[], None]) -> None:
        with self._lock, transaction(self._db):
            write()


def _stored(state: bytes, report: bytes) -> StoredExecution:
    return StoredExecution(
        execution=_STATE.validate_json(state),
        report=dispatch_pb2.DispatchReport.FromString(report),
    )
