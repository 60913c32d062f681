"""The last desired state on disk, so that a gateway serves while the operator is away.

What was written to whom lies here too: "never written" is a proof only as far back as this file.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from derops.errors import SchemaTooNewError
from derops.files import make_directory, make_private, sync_recovered
from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_headend.fleet.desired import Revision, Snapshot, Written

SCHEMA_VERSION = 1

_SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE asset (uid TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE dispatch (uid TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE delivery (
  dispatch_uid TEXT PRIMARY KEY,
  written_us INTEGER NOT NULL,
  ledger_id TEXT NOT NULL
) STRICT;
"""
_DELIVERIES = "SELECT * FROM delivery WHERE dispatch_uid IN (SELECT uid FROM dispatch)"
_ORPHANS = "DELETE FROM delivery WHERE dispatch_uid NOT IN (SELECT uid FROM dispatch)"

Result = TypeVar("Result")


class DesiredStore:
    """One SQLite file with one thread; each method returns when its change is durable."""

    def __init__(self, path: Path, now_us: int) -> None:
        """Open or make the file; ``now_us`` begins the memory of a new one.

        Raises:
            SchemaTooNewError: A newer program wrote it.
        """
        make_directory(path.parent)
        make_private(path)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="desired-store")
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._migrate(str(path), now_us)
        sync_recovered(path)
        self.state_since_us = self._meta("state_since_us")

    def load(self) -> tuple[Snapshot, dict[str, Written]] | None:
        """Return the last complete state with its deliveries, None if there was none yet."""
        query = self._connection.execute
        if not self._meta("complete"):
            return None
        snapshot = Snapshot(
            revision=Revision(
                operator_start_ms=self._meta("operator_start_ms"), version=self._meta("version")
            ),
            assets=tuple(
                dispatch_pb2.Asset.FromString(body) for (body,) in query("SELECT body FROM asset")
            ),
            dispatches=tuple(
                dispatch_pb2.Dispatch.FromString(body)
                for (body,) in query("SELECT body FROM dispatch")
            ),
        )
        written = {
            uid: Written(written_us=written_us, ledger_id=ledger_id)
            for uid, written_us, ledger_id in query(_DELIVERIES)
        }
        return snapshot, written

    async def replace(self, snapshot: Snapshot) -> None:
        """Put a complete snapshot in the place of what is there; deliveries of it stay."""
        await self._in_transaction(lambda: self._replace(snapshot))

    async def apply(
        self,
        deltas: Sequence[control_pb2.OperatorMessage],
        writes: Mapping[str, Written] = MappingProxyType({}),
    ) -> None:
        """Store changes, and with them first writes that follow, by uid of the dispatch."""
        await self._in_transaction(lambda: self._apply(deltas, writes))

    async def record(self, writes: Sequence[tuple[str, Written]]) -> None:
        """Store first writes, by uid of the dispatch, in the place of what did not happen."""
        await self._in_transaction(lambda: self._record(writes))

    def close(self) -> None:
        """Wait for what is under way and close the file."""
        self._thread.shutdown()
        self._connection.close()

    async def _in_transaction(self, work: Callable[[], object]) -> None:
        def run() -> None:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                work()
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

        await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _replace(self, snapshot: Snapshot) -> None:
        for table in ("asset", "dispatch"):
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608  # our own words
        self._connection.executemany(
            "INSERT INTO asset VALUES (?, ?)",
            [(asset.id.uid, asset.SerializeToString()) for asset in snapshot.assets],
        )
        self._connection.executemany(
            "INSERT INTO dispatch VALUES (?, ?)",
            [(dispatch.uid, dispatch.SerializeToString()) for dispatch in snapshot.dispatches],
        )
        self._connection.execute(_ORPHANS)
        self._set_meta("operator_start_ms", snapshot.revision.operator_start_ms)
        self._set_meta("version", snapshot.revision.version)
        self._set_meta("complete", 1)

    def _record(self, writes: Iterable[tuple[str, Written]]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO delivery VALUES (?, ?, ?)",
            [(uid, write.written_us, write.ledger_id) for uid, write in writes],
        )

    def _apply(
        self, deltas: Sequence[control_pb2.OperatorMessage], writes: Mapping[str, Written]
    ) -> None:
        self._record(writes.items())  # first: what is removed below takes its row with it
        query = self._connection.execute
        for delta in deltas:
            kind = delta.WhichOneof("kind")
            if kind == "asset":
                body = delta.asset.SerializeToString()
                query("INSERT OR REPLACE INTO asset VALUES (?, ?)", (delta.asset.id.uid, body))
            elif kind == "dispatch":
                body = delta.dispatch.SerializeToString()
                query("INSERT OR REPLACE INTO dispatch VALUES (?, ?)", (delta.dispatch.uid, body))
            elif kind == "asset_removed":
                query("DELETE FROM asset WHERE uid = ?", (delta.asset_removed,))
            elif kind == "dispatch_removed":
                query("DELETE FROM dispatch WHERE uid = ?", (delta.dispatch_removed,))
                query("DELETE FROM delivery WHERE dispatch_uid = ?", (delta.dispatch_removed,))
        self._set_meta("version", max(delta.version for delta in deltas))

    def _migrate(self, path: str, now_us: int) -> None:
        (found,) = self._connection.execute("PRAGMA user_version").fetchone()
        if found > SCHEMA_VERSION:
            raise SchemaTooNewError(path, found, SCHEMA_VERSION)
        if found == 0:
            # One transaction: without this time, the memory of it would go back for ever.
            self._connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}"
            )
            self._set_meta("state_since_us", now_us)
            self._connection.execute("COMMIT")

    def _meta(self, key: str) -> int:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return int(row[0]) if row else 0

    def _set_meta(self, key: str, value: int) -> None:
        self._connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
