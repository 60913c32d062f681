"""The last desired state on disk, so that a gateway serves while the operator is away.

The file also has which dispatch was first written to which ledger: "never written" is a proof only
as far back as the file.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

from derops.files import make_directory
from derops.sqlite import Schema, connect, read_version, transaction
from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_headend.access.operator_key import OperatorKeys
from derops_headend.fleet.desired import Revision, Snapshot, Written

SCHEMA = Schema(2, readable_from=1)
PRAGMAS = ("journal_mode = WAL", "synchronous = FULL")

_TABLES = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
CREATE TABLE asset (uid TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE dispatch (uid TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE delivery (
  dispatch_uid TEXT PRIMARY KEY,
  written_us INTEGER NOT NULL,
  ledger_id TEXT NOT NULL
) STRICT;
"""
_LATER_TABLES = """
CREATE TABLE IF NOT EXISTS operator_keys (
  only INTEGER PRIMARY KEY CHECK (only = 1),
  current TEXT NOT NULL,
  previous TEXT NOT NULL,
  previous_until_us INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS holders (asset_uid TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS unread (uid TEXT PRIMARY KEY, body BLOB NOT NULL) STRICT;
"""
"""Tables of version 2. Files of version 1 may have them: it made them, and did not note it."""

# Columns are named: a file of a newer version may have more of them.
_DELIVERIES = (
    "SELECT dispatch_uid, written_us, ledger_id FROM delivery "
    "WHERE dispatch_uid IN (SELECT uid FROM dispatch)"
)
_LOST_HOLDERS = "DELETE FROM holders WHERE asset_uid NOT IN (SELECT uid FROM asset)"
_HOLDERS = (
    "INSERT OR REPLACE INTO holders (asset_uid, body) "
    "SELECT ?1, ?2 WHERE EXISTS (SELECT 1 FROM asset WHERE uid = ?1)"
)
_ORPHANS = "DELETE FROM delivery WHERE dispatch_uid NOT IN (SELECT uid FROM dispatch)"

Result = TypeVar("Result")


class DesiredStore:
    """One SQLite file with one thread; each method returns when its change is durable."""

    def __init__(self, path: Path, now_us: int) -> None:
        """Open or make the file; the memory of a new one begins at ``now_us``.

        Raises:
            SchemaTooNewError: It is for newer programs.
        """
        make_directory(path.parent)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="desired-store")
        self._connection = connect(path, PRAGMAS)
        self._migrate(path, now_us)
        self.state_since_us = self._meta("state_since_us")

    def load(self) -> tuple[Snapshot, dict[str, Written]] | None:
        """Return the last complete state with its first writes; None = there was none yet."""
        query = self._connection.execute
        if not self._meta("complete"):
            return None
        snapshot = Snapshot(
            revision=Revision(
                era=self._meta("era"),
                operator_start_ms=self._meta("operator_start_ms"),
                version=self._meta("version"),
            ),
            assets=tuple(
                dispatch_pb2.Asset.FromString(body) for (body,) in query("SELECT body FROM asset")
            ),
            dispatches=tuple(
                dispatch_pb2.Dispatch.FromString(body)
                for (body,) in query("SELECT body FROM dispatch")
            ),
            unread=tuple(
                control_pb2.Unread.FromString(body) for (body,) in query("SELECT body FROM unread")
            ),
        )
        written = {
            uid: Written(written_us=written_us, ledger_id=ledger_id)
            for uid, written_us, ledger_id in query(_DELIVERIES)
        }
        return snapshot, written

    def load_memory(self) -> list[control_pb2.Session]:
        """Return what is remembered of the streams of each asset."""
        rows = self._connection.execute("SELECT body FROM holders")
        return [control_pb2.Session.FromString(body) for (body,) in rows]

    async def remember(self, memories: Sequence[control_pb2.Session]) -> None:
        """Store what is to be remembered of the streams of assets."""
        rows = [(memory.asset_uid, memory.SerializeToString()) for memory in memories]
        await self._in_transaction(lambda: self._connection.executemany(_HOLDERS, rows))

    async def replace(self, snapshot: Snapshot) -> None:
        """Replace the state by a complete snapshot; first writes of its dispatches stay."""
        await self._in_transaction(lambda: self._replace(snapshot))

    async def apply(
        self,
        deltas: Sequence[control_pb2.OperatorMessage],
        writes: Mapping[str, Written] = MappingProxyType({}),
    ) -> None:
        """Store changes and the first writes that follow from them, by uid of the dispatch."""
        await self._in_transaction(lambda: self._apply(deltas, writes))

    async def record(self, writes: Sequence[tuple[str, Written]]) -> None:
        """Store first writes, by uid of the dispatch; each replaces one that did not happen."""
        await self._in_transaction(lambda: self._record(writes))

    def operator_keys(self) -> OperatorKeys:
        """Return the keys that were kept last; call it before anything is stored."""
        query = "SELECT current, previous, previous_until_us FROM operator_keys"
        row = self._connection.execute(query).fetchone()
        if row is None:
            return OperatorKeys()
        return OperatorKeys(current=row[0], previous=row[1], previous_until_us=row[2])

    async def keep_operator_keys(self, keys: OperatorKeys) -> None:
        """Store the keys; they replace those before."""
        await self._in_transaction(lambda: self._keep_operator_keys(keys))

    def close(self) -> None:
        """Wait for the transaction under way and close the file."""
        self._thread.shutdown()
        self._connection.close()

    async def _in_transaction(self, work: Callable[[], object]) -> None:
        def run() -> None:
            with transaction(self._connection):
                work()

        await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _replace(self, snapshot: Snapshot) -> None:
        for table in ("asset", "dispatch", "unread"):
            self._connection.execute(f"DELETE FROM {table}")  # noqa: S608  # our own words
        self._connection.executemany(
            "INSERT INTO asset (uid, body) VALUES (?, ?)",
            [(asset.id.uid, asset.SerializeToString()) for asset in snapshot.assets],
        )
        self._connection.executemany(
            "INSERT INTO dispatch (uid, body) VALUES (?, ?)",
            [(dispatch.uid, dispatch.SerializeToString()) for dispatch in snapshot.dispatches],
        )
        self._connection.executemany(
            "INSERT INTO unread (uid, body) VALUES (?, ?)",
            [(unread.uid, unread.SerializeToString()) for unread in snapshot.unread],
        )
        self._connection.execute(_ORPHANS)
        self._connection.execute(_LOST_HOLDERS)
        self._set_meta("operator_start_ms", snapshot.revision.operator_start_ms)
        self._set_meta("version", snapshot.revision.version)
        self._set_meta("era", snapshot.revision.era)
        self._set_meta("complete", 1)

    def _keep_operator_keys(self, keys: OperatorKeys) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO operator_keys (only, current, previous, previous_until_us) "
            "VALUES (1, ?, ?, ?)",
            (keys.current, keys.previous, keys.previous_until_us),
        )

    def _record(self, writes: Iterable[tuple[str, Written]]) -> None:
        self._connection.executemany(
            "INSERT OR REPLACE INTO delivery (dispatch_uid, written_us, ledger_id) "
            "VALUES (?, ?, ?)",
            [(uid, write.written_us, write.ledger_id) for uid, write in writes],
        )

    def _apply(
        self, deltas: Sequence[control_pb2.OperatorMessage], writes: Mapping[str, Written]
    ) -> None:
        self._record(writes.items())  # first: a removal below deletes its row again
        query = self._connection.execute
        for delta in deltas:
            kind = delta.WhichOneof("kind")
            if kind == "unread":
                body = delta.unread.SerializeToString()
                query(
                    "INSERT OR REPLACE INTO unread (uid, body) VALUES (?, ?)",
                    (delta.unread.uid, body),
                )
            else:  # it was read at last, or it is gone
                query("DELETE FROM unread WHERE uid = ?", (_uid(delta),))
            if kind == "asset":
                body = delta.asset.SerializeToString()
                query(
                    "INSERT OR REPLACE INTO asset (uid, body) VALUES (?, ?)",
                    (delta.asset.id.uid, body),
                )
            elif kind == "dispatch":
                body = delta.dispatch.SerializeToString()
                query(
                    "INSERT OR REPLACE INTO dispatch (uid, body) VALUES (?, ?)",
                    (delta.dispatch.uid, body),
                )
            elif kind == "asset_removed":
                query("DELETE FROM asset WHERE uid = ?", (delta.asset_removed,))
                query("DELETE FROM holders WHERE asset_uid = ?", (delta.asset_removed,))
            elif kind == "dispatch_removed":
                query("DELETE FROM dispatch WHERE uid = ?", (delta.dispatch_removed,))
                query("DELETE FROM delivery WHERE dispatch_uid = ?", (delta.dispatch_removed,))
        self._set_meta("version", max(delta.version for delta in deltas))

    def _migrate(self, path: Path, now_us: int) -> None:
        found = read_version(self._connection, path, SCHEMA.version)
        if found >= SCHEMA.version:
            return
        # One transaction: a file without its time would claim to remember everything.
        first = _TABLES if found == 0 else ""
        self._connection.executescript(";".join(["BEGIN", first, _LATER_TABLES, *SCHEMA.note()]))
        if found == 0:
            self._set_meta("state_since_us", now_us)
        self._connection.execute("COMMIT")

    def _meta(self, key: str) -> int:
        row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return int(row[0]) if row else 0

    def _set_meta(self, key: str, value: int) -> None:
        self._connection.execute(
            "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value)
        )


def _uid(delta: control_pb2.OperatorMessage) -> str:
    """Return the uid of what a change is about."""
    kind = delta.WhichOneof("kind")
    if kind == "asset":
        return delta.asset.id.uid
    if kind == "dispatch":
        return delta.dispatch.uid
    return delta.asset_removed or delta.dispatch_removed
