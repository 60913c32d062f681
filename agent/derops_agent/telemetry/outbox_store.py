"""The file behind the outboxes of all assets of a process: bounded, durable, and replaceable.

It is one file, so that five hundred assets cost one commit a second.
"""

import asyncio
import secrets
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from derops.ids import AssetName
from derops.log_fields import asset_fields
from derops.sqlite import Schema, transaction
from derops.wire.v1 import agent_pb2
from derops_agent import metrics
from derops_agent.storage import open_database
from derops_agent.telemetry.outbox import Backlog, Outbox, OutboxListener, Row, Trouble

SCHEMA = Schema(1, readable_from=1)
DEFAULT_MAX_BYTES = 160_000_000
"""For one asset: eight days of one sample of eight quantities a second, at 225 bytes each."""

DEFAULT_MAX_AGE_SECONDS = 7 * 86400
_MOST_DROPPED = 50_000
_ROW_BYTES = 60
"""What a row takes in the file beside its message; measured."""

_SIZE = f"length(message) + {_ROW_BYTES}"
_GAP = bytes([agent_pb2.AgentMessage.GAP_FIELD_NUMBER << 3 | 2])
"""What the message of a gap begins with."""

_MAX_GAP_BYTES = 256
_SAMPLES = (
    # A longer message is none of a gap, and is not read for this.
    f"CASE WHEN length(message) < {_MAX_GAP_BYTES} AND substr(message, 1, 1) = x'{_GAP.hex()}' "
    "THEN 0 ELSE samples END"
)
"""How many samples a row has; a gap has none."""

_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
_TABLES = """
CREATE TABLE outbox (
  key INTEGER PRIMARY KEY,
  asset TEXT NOT NULL UNIQUE,
  outbox_id TEXT NOT NULL,
  last_sequence INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE batch (
  key INTEGER NOT NULL,
  sequence INTEGER NOT NULL,
  from_us INTEGER NOT NULL,
  to_us INTEGER NOT NULL,
  samples INTEGER NOT NULL,
  message BLOB NOT NULL,
  PRIMARY KEY (key, sequence)
) WITHOUT ROWID;
"""


@dataclass(slots=True)
class _OutboxSize:
    """What an outbox has on the disk."""

    batches: int = 0
    size: int = 0
    samples: int = 0
    """Those that gaps stand for are not counted."""

    oldest: tuple[int, int] | None = None
    """When the first and the last sample of its oldest batch were taken; None = not looked up."""

    @property
    def backlog(self) -> Backlog:
        """What of it waits to be sent."""
        return Backlog(self.samples, self.oldest[0] if self.samples and self.oldest else 0)


class OutboxStore:
    """One SQLite file with the outboxes of all assets of this process.

    ``commit`` and ``read`` belong to one thread: a reader in another would see what is not
    committed yet.
    """

    def __init__(
        self,
        path: Path,
        *,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_age_seconds: int = DEFAULT_MAX_AGE_SECONDS,
        now_us: Callable[[], int | None] = lambda: None,
    ) -> None:
        """Open or make the file; one that is damaged is put aside.

        Args:
            path: The file.
            max_bytes: Bound on what each asset takes in the file.
            max_age_seconds: Bound on the age of its samples.
            now_us: The wall clock, None while nobody has confirmed it: a clock that jumps ahead
                would make everything too old.

        Raises:
            SchemaTooNewError: It is for newer agents.
            sqlite3.Error: It cannot be made or read now, see ``open_database``.
            OSError: The same of its directory.
        """
        self._path = path
        self._max_bytes, self._max_age_us = max_bytes, max_age_seconds * 1_000_000
        self._now_us = now_us
        self._log = structlog.get_logger("outbox")
        self._outboxes: dict[int, Outbox] = {}
        self._names: dict[int, AssetName] = {}
        self.awaits_flush = asyncio.Event()
        """Set when an outbox should not wait for the next regular flush."""

        self.trouble: Trouble | None = None
        """Why the disk takes nothing, as the flusher found; None = it takes what comes."""

        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not is_damaged(error):
                raise
            self._put_aside(error)
            self._open()

    def _open(self) -> None:
        self._db = open_database(self._path, _TABLES, SCHEMA)
        self._kept = {
            key: _OutboxSize(batches, size, samples)
            for key, batches, size, samples in self._db.execute(
                f"SELECT key, count(*), sum({_SIZE}), sum({_SAMPLES}) "  # noqa: S608
                "FROM batch GROUP BY key"
            )
        }

    def wake(self) -> None:
        """Make the next flush begin at once; in the event loop's thread."""
        self.awaits_flush.set()

    def open(self, asset: AssetName, listener: OutboxListener) -> Outbox:
        """Return the outbox of an asset; blocks, and belongs to the thread of ``commit``.

        Args:
            asset: Whose samples it takes.
            listener: Who sends them.

        Raises:
            sqlite3.Error: It is new, and cannot be stored now.
        """
        key, outbox_id, last = self._register(asset)
        first, gap = last + 1, 0
        for sequence, message in self.read(key, 0, 2**62, 1):
            first = sequence
            if agent_pb2.AgentMessage.FromString(message).HasField("gap"):
                gap = sequence
        stored = self._kept.setdefault(key, _OutboxSize())
        self._look_up_oldest(key, stored)
        self._outboxes[key] = Outbox(
            self,
            listener,
            key,
            outbox_id,
            first=first,
            last=last,
            gap=gap,
            kept=stored.backlog,
        )
        self._names[key] = asset
        return self._outboxes[key]

    def _register(self, asset: AssetName, key: int | None = None) -> tuple[int, str, int]:
        self._db.execute(
            "INSERT OR IGNORE INTO outbox (key, asset, outbox_id) VALUES (?, ?, ?)",
            [key, str(asset), secrets.token_hex(16)],
        )
        row: tuple[int, str, int] = self._db.execute(
            "SELECT key, outbox_id, last_sequence FROM outbox WHERE asset = ?", [str(asset)]
        ).fetchone()
        return row

    def replace(self, error: sqlite3.Error) -> dict[int, str]:
        """Put a damaged file aside and begin a new one; return the new ids by key. Blocks.

        The headend never gets what the old file held and was not acknowledged. That file stays on
        the disk, for whoever wants to look into it.
        """
        self._db.close()
        self._put_aside(error)
        self._open()
        return {key: self._register(name, key)[1] for key, name in self._names.items()}

    def begin_anew(self, ids: dict[int, str]) -> None:
        """Tell the outboxes that the file was replaced, by key; in the event loop's thread."""
        for key, outbox_id in ids.items():
            self._outboxes[key].begin_anew(outbox_id)

    def _put_aside(self, error: sqlite3.Error) -> None:
        aside = self._path.with_name(f"{self._path.name}.damaged-{secrets.token_hex(4)}")
        metrics.OUTBOXES_DAMAGED.inc()
        self._log.error("outbox.damaged", file=str(self._path), aside=str(aside), why=str(error))
        self._path.rename(aside)
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)

    def collect(self) -> list[tuple[int, int, list[Row]]]:
        """Take what all outboxes have; in the event loop's thread."""
        return [outbox.take() for outbox in list(self._outboxes.values())]

    def commit(self, work: list[tuple[int, int, list[Row]]]) -> dict[int, int]:
        """Store new batches, delete acknowledged ones, bound the rest. Blocks, in any thread.

        Returns:
            The outboxes whose oldest batches were replaced by a gap, and where the gap stands.
        """
        shortened = {}
        kept = {key: replace(stored) for key, stored in self._kept.items()}
        now_us = self._now_us()
        oldest_us = now_us - self._max_age_us if now_us is not None else 0
        try:
            with transaction(self._db):
                for key, acknowledged, rows in work:
                    stored = self._kept.setdefault(key, _OutboxSize())
                    self._apply(key, stored, acknowledged, rows)
                    if stored.size > self._max_bytes:
                        shortened[key] = self._shorten(key, stored, "OutboxFull")
                    elif self._oldest_us(key, stored) < oldest_us:
                        shortened[key] = self._shorten(key, stored, "OutboxTooOld", oldest_us)
                    self._look_up_oldest(key, stored)
        except BaseException:
            self._kept = kept
            raise
        return shortened

    def finish(self, work: list[tuple[int, int, list[Row]]], shortened: dict[int, int]) -> None:
        """Tell the outboxes what is durable now; in the event loop's thread."""
        for key, _, rows in work:
            outbox, kept = self._outboxes[key], self._kept[key].backlog
            if key in shortened:
                outbox.shortened(rows, kept, shortened[key])
            else:
                outbox.stored(rows, kept)

    def flush(self) -> None:
        """Collect, commit and tell, all at once; blocks."""
        work = self.collect()
        self.finish(work, self.commit(work))

    def read(self, key: int, after: int, through: int, limit: int) -> list[tuple[int, bytes]]:
        """Return batches of one outbox, oldest first; blocks."""
        return self._db.execute(
            "SELECT sequence, message FROM batch WHERE key = ? AND sequence > ? AND sequence <= ? "
            "ORDER BY sequence LIMIT ?",
            [key, after, through, limit],
        ).fetchall()

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        self._db.close()

    def _apply(self, key: int, stored: _OutboxSize, acknowledged: int, rows: list[Row]) -> None:
        if rows:
            # IGNORE: a commit whose outcome is not known is made again.
            for row in rows:
                new = self._db.execute(
                    "INSERT OR IGNORE INTO batch (key, sequence, from_us, to_us, samples, message) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (key, *row),
                ).rowcount
                stored.batches += new
                stored.size += new * (len(row[4]) + _ROW_BYTES)
                stored.samples += 0 if row[4].startswith(_GAP) else new * row[3]
            self._db.execute(
                "UPDATE outbox SET last_sequence = ? WHERE key = ?", [rows[-1][0], key]
            )
        if stored.batches:
            gone = self._db.execute(
                "DELETE FROM batch WHERE key = ? AND sequence <= ? "  # noqa: S608
                f"RETURNING {_SIZE}, {_SAMPLES}",
                [key, acknowledged],
            ).fetchall()
            sizes, samples = zip(*gone, strict=True) if gone else ((), ())
            self._forget(stored, len(gone), sum(sizes), sum(samples))

    def _forget(self, stored: _OutboxSize, batches: int, size: int, samples: int) -> None:
        if batches:
            stored.batches -= batches
            stored.size -= size
            stored.samples -= samples
            stored.oldest = None

    def _oldest_us(self, key: int, stored: _OutboxSize) -> int:
        """Return when the newest sample of the oldest batch was taken; 2**63 = there is none.

        A gap is never too old: nothing could take its place but itself.
        """
        self._look_up_oldest(key, stored)
        return 2**63 if stored.oldest is None else stored.oldest[1]

    def _look_up_oldest(self, key: int, stored: _OutboxSize) -> None:
        if stored.samples and stored.oldest is None:
            stored.oldest = self._db.execute(
                "SELECT from_us, to_us FROM batch WHERE key = ? AND substr(message, 1, 1) <> ? "
                "ORDER BY sequence LIMIT 1",
                [key, _GAP],
            ).fetchone()

    def _shorten(self, key: int, stored: _OutboxSize, reason: str, oldest_us: int = 0) -> int:
        """Replace the oldest batches by one Gap, which takes the last dropped sequence.

        Those are the ones that are too old, or a tenth of the bound: each step costs as much as it
        drops.
        """
        through, from_us, to_us, samples = 0, 2**63 - 1, 0, 0
        rows = size = dropped = 0
        room = stored.size - self._max_bytes * 9 // 10
        for row in self._db.execute(
            f"SELECT sequence, from_us, to_us, samples, {_SIZE}, "  # noqa: S608
            "substr(message, 1, 1) = ? FROM batch WHERE key = ? ORDER BY sequence",
            [_GAP, key],
        ):
            is_gap = row[5]
            enough = row[2] >= oldest_us if oldest_us else rows >= 2 and size >= room
            if not is_gap and (enough or rows >= _MOST_DROPPED):
                break
            through = row[0]
            from_us, to_us = min(from_us, row[1]), max(to_us, row[2])
            samples += row[3]
            dropped += 0 if is_gap else row[3]
            rows, size = rows + 1, size + row[4]
        gap = agent_pb2.Gap(
            sequence=through,
            outbox_id=self._outboxes[key].outbox_id,
            from_us=from_us,
            to_us=to_us,
            samples=samples,
            reason=reason,
        )
        message = agent_pb2.AgentMessage(gap=gap).SerializeToString()
        self._db.execute("DELETE FROM batch WHERE key = ? AND sequence <= ?", [key, through])
        self._db.execute(
            "INSERT INTO batch (key, sequence, from_us, to_us, samples, message) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [key, through, from_us, to_us, samples, message],
        )
        self._forget(stored, rows, size, dropped)
        stored.batches += 1
        stored.size += len(message) + _ROW_BYTES
        metrics.SAMPLES_DROPPED.labels(reason).inc(dropped)
        fields = asset_fields(self._names[key].namespace, self._names[key].name)
        self._log.warning("samples.dropped", **fields, reason=reason, samples=dropped)
        return int(through)


def is_damaged(error: sqlite3.Error) -> bool:
    """Tell whether an error says that the file is not, or no longer, a database."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in _DAMAGED
