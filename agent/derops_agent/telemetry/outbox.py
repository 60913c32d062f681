"""The outbox of one asset: its samples are on the disk before they are sent.

Each outbox has a random id and a sequence without holes. Where old batches had to be dropped, a Gap
stands at the last dropped sequence. While the disk takes nothing, the newest samples wait in
memory; once it does again, a Gap is stored for the others.
"""

import asyncio
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from derops.devices import bounded_telemetry
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2
from derops_agent import metrics
from derops_agent.ports import Reading

MAX_SAMPLES = 100
"""Samples in one batch, at most."""

MAX_VALUES = 6000
"""Values in one batch, at most: 48 KB, below the 64 KiB of the protocol."""

MAX_WAITING = 3600
"""Samples of one asset that wait in memory while the disk takes nothing, at most."""

_RECENT = 32  # batches kept in memory, for a stream that keeps up
Row = tuple[int, int, int, int, bytes]
"""Sequence, from_us, to_us, samples, AgentMessage."""


class OutboxListener(Protocol):
    """Who sends what an outbox holds; called in the event loop's thread."""

    def note_stored(self) -> None:
        """Note that there is more to send."""

    def note_replaced(self) -> None:
        """Note that the outbox has a new id: a stream that was told the old one is over."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """Samples that wait; what a gap stands for is none of them."""

    samples: int = 0
    oldest_us: int = 0
    """When the oldest of them was taken; 0 = none waits."""


NOTHING = Backlog()


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why the disk takes nothing now."""

    why: str
    since_seconds: float
    """By the clock of the event loop, which nobody can set."""

    def began_us(self, now_us: int) -> int:
        """Return when it began by the wall clock, which says ``now_us`` now."""
        elapsed_seconds = asyncio.get_running_loop().time() - self.since_seconds
        return now_us - round(elapsed_seconds * SECOND_US)


class BatchStore(Protocol):
    """The file behind an outbox."""

    trouble: Trouble | None
    """Why the disk takes nothing; None = it takes what comes."""

    def wake(self) -> None:
        """Make the next flush begin at once."""

    def read(self, key: int, after: int, through: int, limit: int) -> list[tuple[int, bytes]]:
        """Return batches of one outbox by sequence, oldest first; blocks."""
        ...


@dataclass(slots=True)
class _Lost:
    """Samples that found no place in memory."""

    from_us: int
    to_us: int
    samples: int = 0


class Outbox:
    """The outbox of one asset. All methods but ``read`` are for the event loop's thread."""

    def __init__(
        self,
        store: BatchStore,
        listener: OutboxListener,
        key: int,
        outbox_id: str,
        *,
        first: int,
        last: int,
        gap: int,
        kept: Backlog = NOTHING,
    ) -> None:
        self.outbox_id = outbox_id
        self.last_sequence = last
        """The last sequence that was given out; ``stored_sequence`` is the last durable one."""
        self.stored_sequence = last
        self.gap_sequence = gap
        """Where the last gap stands; 0 = there is none."""
        self.first_sequence = first
        """The oldest that is not acknowledged; where there is none, the next that will be."""
        self._store, self._listener = store, listener
        self._key = key
        self._pending: deque[Reading] = deque()
        self._lost: _Lost | None = None
        self._recent: deque[tuple[int, bytes]] = deque(maxlen=_RECENT)
        self._acknowledged = 0
        self._sampled_us = 0
        self._storing = NOTHING
        self._kept = kept
        """What was on the disk after the last commit."""

    def add(self, reading: Reading) -> None:
        """Take a sample; the next flush of the store makes it durable."""
        if not reading.values:
            return
        self._sampled_us = reading.at_us
        self._pending.append(reading)
        if len(self._pending) > MAX_WAITING:
            self._lose(self._pending.popleft())
        if len(self._pending) >= MAX_SAMPLES:
            self._store.wake()

    def _lose(self, reading: Reading) -> None:
        metrics.SAMPLES_DROPPED.labels("DiskFailed").inc()
        if self._lost is None:
            self._lost = _Lost(reading.at_us, reading.at_us)
        self._lost.from_us = min(self._lost.from_us, reading.at_us)
        self._lost.to_us = max(self._lost.to_us, reading.at_us)
        self._lost.samples += 1

    def acknowledge(self, through: int) -> None:
        """Forget all batches up to ``through``; the next flush deletes them."""
        self._acknowledged = max(self._acknowledged, min(through, self.stored_sequence))
        self.first_sequence = max(self.first_sequence, self._acknowledged + 1)

    def facts(self, now_us: int) -> agent_pb2.TelemetryFacts:
        """Return where the telemetry stands, as a heartbeat says it.

        What the gateway acknowledged counts as waiting until the next commit, unless that is all.

        Args:
            now_us: The wall clock.
        """
        kept = NOTHING if self._acknowledged >= self.stored_sequence else self._kept
        oldest_us = self._pending[0].at_us if self._pending else 0
        trouble = self._store.trouble
        return bounded_telemetry(
            agent_pb2.TelemetryFacts(
                sampled_us=self._sampled_us,
                waiting_samples=kept.samples + self._storing.samples + len(self._pending),
                oldest_waiting_us=kept.oldest_us or self._storing.oldest_us or oldest_us,
                problem=trouble.why if trouble is not None else "",
                problem_since_us=trouble.began_us(now_us) if trouble is not None else 0,
            )
        )

    def recent(self, after: int, through: int) -> list[tuple[int, bytes]] | None:
        """Return the batches that follow ``after`` from memory; None = they are not all there."""
        if not self._recent or self._recent[0][0] > after + 1:
            return None
        return [row for row in self._recent if after < row[0] <= through]

    def read(self, after: int, through: int, limit: int = 64) -> list[tuple[int, bytes]]:
        """Return the batches that follow ``after`` from the disk, oldest first. Blocks."""
        return self._store.read(self._key, after, through, limit)

    def take(self) -> tuple[int, int, list[Row]]:
        """Return key, acknowledged sequence and the rows to store; for the store alone."""
        rows = []
        if self._lost is not None:
            lost, self._lost = self._lost, None
            rows.append(self._gap_row(lost))
        pending, self._pending = list(self._pending), deque()
        self._storing = Backlog(len(pending), pending[0].at_us) if pending else NOTHING
        for samples in split(pending):
            self.last_sequence += 1
            batch = encode(samples, self.last_sequence, self.outbox_id)
            message = agent_pb2.AgentMessage(telemetry=batch).SerializeToString()
            times = [sample.at_us for sample in samples]
            rows.append((self.last_sequence, min(times), max(times), len(samples), message))
        return self._key, self._acknowledged, rows

    def _gap_row(self, lost: _Lost) -> Row:
        self.last_sequence += 1
        gap = agent_pb2.Gap(
            sequence=self.last_sequence,
            outbox_id=self.outbox_id,
            from_us=lost.from_us,
            to_us=lost.to_us,
            samples=lost.samples,
            reason="DiskFailed",
        )
        message = agent_pb2.AgentMessage(gap=gap).SerializeToString()
        return self.last_sequence, lost.from_us, lost.to_us, lost.samples, message

    def begin_anew(self, outbox_id: str) -> None:
        """Take a new identity, with nothing stored; for the store alone."""
        self.outbox_id, self.first_sequence = outbox_id, 1
        self.last_sequence = self.stored_sequence = self.gap_sequence = self._acknowledged = 0
        self._storing = self._kept = NOTHING
        self._recent.clear()
        self._listener.note_replaced()

    def stored(self, rows: list[Row], kept: Backlog) -> None:
        """Note that ``rows`` are durable, and what the disk has now; for the store alone."""
        self._storing, self._kept = NOTHING, kept
        if rows:
            self._recent.extend((row[0], row[4]) for row in rows)
            self.stored_sequence = rows[-1][0]
            self._listener.note_stored()

    def shortened(self, rows: list[Row], kept: Backlog, gap_sequence: int) -> None:
        """Note that old batches became a gap, and what the disk has now; for the store alone."""
        self._storing, self._kept = NOTHING, kept
        self.gap_sequence = gap_sequence
        self.first_sequence = max(self.first_sequence, gap_sequence)
        self._recent.clear()
        self.stored_sequence = rows[-1][0] if rows else self.stored_sequence
        self._listener.note_stored()


def split(samples: list[Reading]) -> Iterator[list[Reading]]:
    """Yield the samples in batches that are within the bounds of the protocol."""
    batch: list[Reading] = []
    columns: set[int] = set()
    for sample in samples:
        wider = columns | sample.values.keys()
        if batch and (len(batch) >= MAX_SAMPLES or len(wider) * (len(batch) + 1) > MAX_VALUES):
            yield batch
            batch, wider = [], set(sample.values)
        batch.append(sample)
        columns = wider
    if batch:
        yield batch


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
