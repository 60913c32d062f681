"""What one outbox was seen to send and was told: the truth that the database is compared with."""

import bisect
import hashlib
import math
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from derops.wire.v1 import agent_pb2

COLUMNS = tuple(name.lower() for name in agent_pb2.Quantity.keys()[1:])
"""Columns of ``telemetry``, in the order of the numbers of the quantities."""

_PACK = struct.Struct(f"<{len(COLUMNS)}d")


class Point(NamedTuple):
    """Where a value is stored, within an asset."""

    name: str
    """Of a measurement; empty = a row of ``telemetry``."""
    ts_us: int


class Gap(NamedTuple):
    """What an agent says it had to drop."""

    from_us: int
    to_us: int
    samples: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """A message of an outbox: points with the hashes of their values, or a gap."""

    points: Mapping[Point, int] = field(default_factory=dict)
    gap: Gap | None = None


def hash_of(values: Iterable[float | None]) -> int:
    """Return a hash of the values of one row of ``telemetry``; None and NaN are the same."""
    known = (math.nan if value is None or value != value else value for value in values)
    return int.from_bytes(hashlib.blake2b(_PACK.pack(*known), digest_size=8).digest())


def hash_of_value(value: float) -> int:
    """Return a hash of one measurement."""
    return hash_of([value] * len(COLUMNS))


def sent_batch(batch: agent_pb2.TelemetryBatch) -> Sent:
    """Return what the database should hold of a batch that breaks no rule and has no infinities."""
    times = [batch.t0_us + dt_us for dt_us in batch.dt_us]
    known: dict[int, Sequence[float]] = {c.quantity: c.values for c in batch.columns}
    absent = [math.nan] * len(times)
    columns = [known.get(number, absent) for number in range(1, len(COLUMNS) + 1)]
    points = {
        Point("", ts_us): hash_of(values)
        for ts_us, values in zip(times, zip(*columns, strict=True), strict=True)
        if not all(map(math.isnan, values))
    }
    for column in batch.columns:
        if column.name:
            points |= {
                Point(column.name, ts_us): hash_of_value(value)
                for ts_us, value in zip(times, column.values, strict=True)
                if not math.isnan(value)
            }
    return Sent(points=points)


def sent_gap(gap: agent_pb2.Gap) -> Sent:
    """Return what the database should hold of a gap."""
    return Sent(gap=Gap(gap.from_us, gap.to_us, gap.samples, gap.reason))


@dataclass(slots=True)
class Checked:
    """The part of a journal that was found whole in the database, and is not held any more."""

    through: int = 0
    """All sequences up to it."""
    until_us: int = 0
    """Time of their newest point."""
    points: int = 0
    gaps: int = 0
    received_us: int = 0
    """When the last of them was received."""


@dataclass(slots=True)
class Journal:
    """Everything that one outbox did; times of acknowledgements are monotonic seconds."""

    asset_uid: str
    outbox_id: str
    sent: dict[int, Sent] = field(default_factory=dict)
    """By sequence, from the first that was not checked yet."""
    batches_sent: int = 0
    acknowledged: int = 0
    acknowledged_at: list[tuple[float, int]] = field(default_factory=list)
    excused: set[int] = field(default_factory=set)
    """Sequences that a gap stands for: they may be stored or not."""
    replaced: dict[int, Mapping[Point, int]] = field(default_factory=dict)
    """Batches that were sent before a gap took their sequence."""
    contradictions: list[str] = field(default_factory=list)
    """What one of the two sides said that cannot be true."""
    ends: list[str] = field(default_factory=list)
    """Why streams ended."""
    checked: Checked = field(default_factory=Checked)
    _first: int = 1

    def hello(self, first_sequence: int) -> None:
        """Note where a stream begins: what it says of earlier ones is only an echo."""
        self._first = first_sequence

    def record(self, sequence: int, sent: Sent) -> None:
        """Note a message before it goes out."""
        if sent.gap is not None:
            self.excused.update(range(self.acknowledged + 1, sequence))
        if sequence <= self.checked.through:
            return
        before = self.sent.get(sequence)
        if before is None:
            self.batches_sent += 1
        elif sent.gap is not None:
            self.replaced[sequence] = before.points or self.replaced.get(sequence, {})
        elif before != sent:
            self.contradictions.append(f"{sequence} was sent with two contents")
        self.sent[sequence] = sent

    def acknowledge(self, through: int, now: float) -> bool:
        """Note an acknowledgement; return whether it said something new."""
        if through < self._first or through <= self.acknowledged:
            return False
        for sequence in range(self.acknowledged + 1, through + 1):
            if sequence not in self.sent and sequence not in self.excused:
                self.contradictions.append(f"{sequence} was acknowledged and never sent")
            elif sequence < self._first and sequence not in self.excused:
                self.contradictions.append(f"{sequence} was forgotten before it was acknowledged")
        self.acknowledged = through
        self.acknowledged_at.append((now, through))
        return True

    def acknowledged_when(self, sequence: int) -> float | None:
        """Return when a message was acknowledged, if that is known."""
        place = bisect.bisect_left(self.acknowledged_at, sequence, key=itemgetter(1))
        return self.acknowledged_at[place][0] if place < len(self.acknowledged_at) else None

    def heard_after(self, instant: float) -> float | None:
        """Return when the first acknowledgement after an instant came."""
        place = bisect.bisect_right(self.acknowledged_at, instant, key=itemgetter(0))
        return self.acknowledged_at[place][0] if place < len(self.acknowledged_at) else None

    def forget(self, checked: Checked) -> None:
        """Drop what was checked."""
        for sequence in range(self.checked.through + 1, checked.through + 1):
            self.sent.pop(sequence, None)
            self.excused.discard(sequence)
            self.replaced.pop(sequence, None)
        self.acknowledged_at = [
            each for each in self.acknowledged_at if each[1] > checked.through
        ] or self.acknowledged_at[-1:]
        self.checked = checked
