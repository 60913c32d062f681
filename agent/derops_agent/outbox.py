"""Telemetry on its way: samples are on the disk before they are sent, and until acknowledged.

One file for all assets of a process, so that five hundred of them cost one commit a second. Each
asset has a random outbox id of its own in it and a sequence without holes; where old batches had
to be dropped, a Gap stands at the last dropped sequence.
"""

import math
import secrets
from collections import deque
from collections.abc import Callable
from pathlib import Path

from derops.ids import AssetName
from derops.wire.v1 import agent_pb2
from derops_agent import metrics
from derops_agent.ledger import open_database
from derops_agent.ports import Reading

SCHEMA_VERSION = 1
MAX_SAMPLES = 100
"""Samples in one batch, at most."""

_RECENT = 32
_SCHEMA = """
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
Row = tuple[int, int, int, int, bytes]
"""Sequence, from_us, to_us, samples, AgentMessage."""


class Outbox:
    """The view of one asset. All methods but ``read`` are for the event loop's thread."""

    def __init__(
        self, store: "OutboxStore", key: int, outbox_id: str, *, first: int, last: int, gap: int
    ) -> None:
        self.outbox_id = outbox_id
        self.on_stored: Callable[[], None] = lambda: None
        """Called when there is more to send."""
        self.last_sequence = last
        """The last sequence that was given out; ``stored_sequence`` is the last durable one."""
        self.stored_sequence = last
        self.gap_sequence = gap
        """Where the last gap stands; 0 = there is none."""
        self.first_sequence = first
        """The oldest that is not acknowledged; where there is none, the next that will be."""
        self._store = store
        self._key = key
        self._pending: list[Reading] = []
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_RECENT)
        self._acknowledged = 0

    def add(self, reading: Reading) -> None:
        """Take a sample; the next flush of the store makes it durable."""
        if not reading.values:
            return
        self._pending.append(reading)
        if len(self._pending) >= MAX_SAMPLES:
            self._store.wake()

    def acknowledge(self, through: int) -> None:
        """Forget all batches up to ``through``; the next flush deletes them."""
        self._acknowledged = max(self._acknowledged, min(through, self.stored_sequence))
        self.first_sequence = max(self.first_sequence, self._acknowledged + 1)

    def recent(self, after: int, through: int) -> list[tuple[int, bytes]] | None:
        """Return the batches that follow ``after`` from memory, None if they are not there."""
        if not self._recent or self._recent[0][0] > after + 1:
            return None
        return [row for row in self._recent if after < row[0] <= through]

    def read(self, after: int, through: int, limit: int = 64) -> list[tuple[int, bytes]]:
        """Return the batches that follow ``after`` from the disk, oldest first. Blocks."""
        return self._store.read(self._key, after, through, limit)

    def take(self) -> tuple[int, int, list[Row]]:
        """Return key, what is acknowledged, and the rows to store; for the store alone."""
        rows = []
        pending, self._pending = self._pending, []
        for start in range(0, len(pending), MAX_SAMPLES):
            samples = pending[start : start + MAX_SAMPLES]
            self.last_sequence += 1
            batch = encode(samples, self.last_sequence, self.outbox_id)
            message = agent_pb2.AgentMessage(telemetry=batch).SerializeToString()
            rows.append(
                (self.last_sequence, samples[0].at_us, samples[-1].at_us, len(samples), message)
            )
        return self._key, self._acknowledged, rows

    def stored(self, rows: list[Row]) -> None:
        """Note that ``rows`` are durable; for the store alone."""
        if rows:
            self._recent.extend((row[0], row[4]) for row in rows)
            self.stored_sequence = rows[-1][0]
            self.on_stored()

    def shortened(self, rows: list[Row], gap_sequence: int) -> None:
        """Note that old batches became a gap: what follows is read from the disk."""
        self.gap_sequence = gap_sequence
        self.first_sequence = max(self.first_sequence, gap_sequence)
        self._recent.clear()
        self.stored_sequence = rows[-1][0] if rows else self.stored_sequence
        self.on_stored()


class OutboxStore:
    """One SQLite file with the outboxes of all assets of this process.

    ``commit`` and ``read`` belong to one thread: a reader in another would see what is not
    committed yet.
    """

    def __init__(self, path: Path, *, max_batches: int = 100_000) -> None:
        """Open or make the file; ``max_batches`` bounds each asset."""
        self._db = open_database(path, _SCHEMA, SCHEMA_VERSION)
        self._max_batches = max_batches
        self._outboxes: dict[int, Outbox] = {}
        self.wake: Callable[[], None] = lambda: None
        """Called when an outbox should not wait for the next regular flush."""
        self._counts: dict[int, int] = dict(
            self._db.execute("SELECT key, count(*) FROM batch GROUP BY key").fetchall()
        )

    def open(self, asset: AssetName) -> Outbox:
        """Return the outbox of an asset."""
        self._db.execute(
            "INSERT OR IGNORE INTO outbox (asset, outbox_id) VALUES (?, ?)",
            [str(asset), secrets.token_hex(16)],
        )
        key, outbox_id, last = self._db.execute(
            "SELECT key, outbox_id, last_sequence FROM outbox WHERE asset = ?", [str(asset)]
        ).fetchone()
        first, gap = last + 1, 0
        for sequence, message in self.read(key, 0, 2**62, 1):
            first = sequence
            if agent_pb2.AgentMessage.FromString(message).HasField("gap"):
                gap = sequence
        self._outboxes[key] = Outbox(self, key, outbox_id, first=first, last=last, gap=gap)
        return self._outboxes[key]

    def collect(self) -> list[tuple[int, int, list[Row]]]:
        """Take what all outboxes have; in the event loop's thread."""
        return [outbox.take() for outbox in self._outboxes.values()]

    def commit(self, work: list[tuple[int, int, list[Row]]]) -> dict[int, int]:
        """Store new batches, delete acknowledged ones, bound the rest. Blocks, in any thread.

        Returns:
            The outboxes whose oldest batches were replaced by a gap, and where the gap stands.
        """
        shortened = {}
        counts = dict(self._counts)
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for key, acknowledged, rows in work:
                self._apply(key, acknowledged, rows)
                if self._counts.get(key, 0) > self._max_batches:
                    shortened[key] = self._shorten(key)
            self._db.execute("COMMIT")
        except BaseException:
            self._counts = counts
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        return shortened

    def finish(self, work: list[tuple[int, int, list[Row]]], shortened: dict[int, int]) -> None:
        """Tell the outboxes what is durable now; in the event loop's thread."""
        for key, _, rows in work:
            outbox = self._outboxes[key]
            if key in shortened:
                outbox.shortened(rows, shortened[key])
            else:
                outbox.stored(rows)

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

    def _apply(self, key: int, acknowledged: int, rows: list[Row]) -> None:
        count = self._counts.get(key, 0)
        if rows:
            # IGNORE: a commit whose outcome nobody heard of is made again.
            count += self._db.executemany(
                "INSERT OR IGNORE INTO batch (key, sequence, from_us, to_us, samples, message) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                [(key, *row) for row in rows],
            ).rowcount
            self._db.execute(
                "UPDATE outbox SET last_sequence = ? WHERE key = ?", [rows[-1][0], key]
            )
        if count:
            count -= self._db.execute(
                "DELETE FROM batch WHERE key = ? AND sequence <= ?", [key, acknowledged]
            ).rowcount
        self._counts[key] = count

    def _shorten(self, key: int) -> int:
        """Replace the oldest tenth by one Gap, which takes the last dropped sequence."""
        drop = self._counts[key] - self._max_batches + max(2, self._max_batches // 10)
        oldest = self._db.execute(
            "SELECT sequence, from_us, to_us, samples FROM batch WHERE key = ? "
            "ORDER BY sequence LIMIT ?",
            [key, drop],
        ).fetchall()
        through, samples = oldest[-1][0], sum(row[3] for row in oldest)
        gap = agent_pb2.Gap(
            sequence=through,
            outbox_id=self._outboxes[key].outbox_id,
            from_us=min(row[1] for row in oldest),
            to_us=max(row[2] for row in oldest),
            samples=samples,
            reason="OutboxFull",
        )
        message = agent_pb2.AgentMessage(gap=gap).SerializeToString()
        self._db.execute("DELETE FROM batch WHERE key = ? AND sequence <= ?", [key, through])
        self._db.execute(
            "INSERT INTO batch (key, sequence, from_us, to_us, samples, message) "
            "VALUES (?, ?, ?, ?, ?, ?)",
            [key, through, gap.from_us, gap.to_us, samples, message],
        )
        self._counts[key] -= len(oldest) - 1
        metrics.SAMPLES_DROPPED.inc(samples)
        return int(through)


def encode(samples: list[Reading], sequence: int, outbox_id: str) -> agent_pb2.TelemetryBatch:
    """Return samples in columns; a value that a sample lacks is NaN."""
    t0_us = samples[0].at_us
    quantities = sorted({quantity for sample in samples for quantity in sample.values})
    return agent_pb2.TelemetryBatch(
        sequence=sequence,
        outbox_id=outbox_id,
        t0_us=t0_us,
        dt_us=[sample.at_us - t0_us for sample in samples],
        columns=[
            agent_pb2.Column(
                quantity=agent_pb2.Quantity.Name(quantity),
                values=[sample.values.get(quantity, math.nan) for sample in samples],
            )
            for quantity in quantities
        ],
    )
