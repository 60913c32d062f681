"""Compares what agents did with what the headend holds. Pure.

A check may come at any time, also while agents send: what is only in the log yet counts as held.
Where a check found all of a part of a journal, the next one looks at that part's counts only.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from tests.field.journal import Checked, Gap, Journal, Point, Sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of ``telemetry`` or ``measurement``."""

    asset_uid: str
    point: Point
    value_hash: int
    received_us: int = 0
    """0 = the table does not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GapRow:
    """A row of ``telemetry_gap``."""

    asset_uid: str
    outbox_id: str
    sequence: int
    gap: Gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """A message as it was received: in the log, or in ``quarantine``."""

    asset_uid: str
    outbox_id: str
    sequence: int
    sent: Sent


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """All that the headend holds of the field, beyond the parts that were checked before."""

    rows: Sequence[Row] = ()
    gaps: Sequence[GapRow] = ()
    quarantined: Sequence[Kept] = ()
    logged: Sequence[Kept] = ()
    """Not in the database yet, in the order of the log."""
    counts_before: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Of each asset: points and gaps of the part that was checked before."""
    holes: Sequence[str] = ()
    """What the writer says that it did not find in the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A promise that was not kept."""

    kind: str
    """Lost, duplicate, altered, invented, out of order, contradiction or rolled up wrongly."""
    asset_uid: str
    detail: str
    sequence: int = 0
    """Of the message that it happened to, where that is known."""

    def __str__(self) -> str:
        place = f" {self.sequence}" if self.sequence else ""
        return f"{self.kind}: {self.asset_uid}{place}: {self.detail}"


class _Held:
    """What is held of one asset."""

    def __init__(self) -> None:
        self.rows: dict[Point, Row] = {}
        self.gaps: dict[tuple[str, int], Gap] = {}
        self.quarantined: list[Kept] = []
        self.logged: list[Kept] = []

    def kept(self, outbox_id: str) -> set[int]:
        """Return sequences that are whole in quarantine or in the log."""
        return {
            kept.sequence
            for kept in (*self.quarantined, *self.logged)
            if kept.outbox_id == outbox_id
        }


def violations(
    journals: Iterable[Journal], stored: Stored, promised: Mapping[str, int] | None = None
) -> Iterator[Violation]:
    """Yield what must not be; nothing, if every promise was kept.

    Acknowledged is in the database, in quarantine or in the log; nothing is there twice, altered or
    invented; messages of one outbox were received in the order of their sequences.

    Args:
        journals: Of the honest.
        stored: What was found.
        promised: What each outbox had been acknowledged before that was looked at; all, by default.
    """
    for hole in stored.holes:
        yield Violation(kind="lost", asset_uid="", detail=hole)
    held: dict[str, _Held] = {}
    yield from _collect(stored, held)
    by_asset: dict[str, list[Journal]] = {}
    for journal in journals:
        by_asset.setdefault(journal.asset_uid, []).append(journal)
    for uid, own in by_asset.items():
        here = held.pop(uid, _Held())
        yield from _count_again(uid, own, stored)
        yield from _invented(uid, own, here)
        for journal in own:
            for detail in journal.contradictions:
                yield Violation(kind="contradiction", asset_uid=uid, detail=detail)
            through = journal.acknowledged if promised is None else promised[journal.outbox_id]
            yield from _lost(journal, here, through)
            yield from _out_of_order(journal, here)
    for uid, here in held.items():
        detail = f"{len(here.rows)} rows of an asset that nobody played"
        yield Violation(kind="invented", asset_uid=uid, detail=detail)


def checked(
    journals: Iterable[Journal], stored: Stored, promised: Mapping[str, int]
) -> Iterator[tuple[Journal, Checked]]:
    """Yield how far each journal is whole in the database: that part need not be held any longer.

    Only after ``violations`` found nothing.
    """
    held: dict[str, _Held] = {}
    for _ in _collect(stored, held):
        raise ValueError("there are violations")
    for journal in journals:
        here = held.get(journal.asset_uid, _Held())
        yield journal, _checked(journal, here, promised[journal.outbox_id])


def _checked(journal: Journal, here: _Held, through: int) -> Checked:
    done = replace(journal.checked)
    for sequence in range(done.through + 1, through + 1):
        sent = journal.sent.get(sequence)
        if sequence in journal.excused or sent is None:
            continue  # with the gap that stands for it
        if sent.gap is not None and (journal.outbox_id, sequence) not in here.gaps:
            break
        if any(point not in here.rows for point in sent.points):
            break
        _take_into(done, journal, here, sequence)
    return done


def _take_into(done: Checked, journal: Journal, here: _Held, through: int) -> None:
    """Move the end of the checked part. The log keeps order: what a gap replaced came before it."""
    points: set[Point] = set()
    for sequence in range(done.through + 1, through + 1):
        sent = journal.sent.get(sequence, Sent())
        done.gaps += (journal.outbox_id, sequence) in here.gaps
        points |= sent.points.keys() | journal.replaced.get(sequence, {}).keys()
    rows = [here.rows[point] for point in points if point in here.rows]
    done.through = through
    done.points += len(rows)
    done.until_us = max([done.until_us, *(point.ts_us for point in points)])
    done.received_us = max([done.received_us, *(row.received_us for row in rows)])


def _collect(stored: Stored, held: dict[str, _Held]) -> Iterator[Violation]:
    for row in stored.rows:
        rows = held.setdefault(row.asset_uid, _Held()).rows
        if row.point in rows:
            detail = f"{row.point} is there twice"
            yield Violation(kind="duplicate", asset_uid=row.asset_uid, detail=detail)
        rows[row.point] = row
    for gap in stored.gaps:
        gaps = held.setdefault(gap.asset_uid, _Held()).gaps
        if (gap.outbox_id, gap.sequence) in gaps:
            detail = "a gap is there twice"
            yield Violation(
                kind="duplicate", asset_uid=gap.asset_uid, sequence=gap.sequence, detail=detail
            )
        gaps[gap.outbox_id, gap.sequence] = gap.gap
    for kept in stored.quarantined:
        held.setdefault(kept.asset_uid, _Held()).quarantined.append(kept)
    for kept in stored.logged:
        held.setdefault(kept.asset_uid, _Held()).logged.append(kept)


def _count_again(uid: str, journals: Sequence[Journal], stored: Stored) -> Iterator[Violation]:
    points, gaps = stored.counts_before.get(uid, (0, 0))
    expected = sum(journal.checked.points for journal in journals)
    if points != expected:
        kind = "lost" if points < expected else "invented"
        detail = f"{points} points where an earlier check found {expected}"
        yield Violation(kind=kind, asset_uid=uid, detail=detail)
    if gaps != sum(journal.checked.gaps for journal in journals):
        yield Violation(kind="invented", asset_uid=uid, detail=f"{gaps} gaps in a checked part")


def _invented(uid: str, journals: Sequence[Journal], here: _Held) -> Iterator[Violation]:
    said = {(own.outbox_id, each): sent for own in journals for each, sent in own.sent.items()}
    sent = _sent_points(journals)
    for point, row in here.rows.items():
        if point not in sent:
            yield Violation(kind="invented", asset_uid=uid, detail=f"{point}")
        elif sent[point][1] != row.value_hash:
            yield Violation(
                kind="altered", asset_uid=uid, sequence=sent[point][0], detail=f"{point}"
            )
    for (outbox_id, sequence), gap in here.gaps.items():
        each = said.get((outbox_id, sequence))
        if each is None or each.gap is None:
            yield Violation(kind="invented", asset_uid=uid, sequence=sequence, detail=f"{gap}")
        elif each.gap != gap:
            yield Violation(kind="altered", asset_uid=uid, sequence=sequence, detail=f"{gap}")
    for kept in (*here.quarantined, *here.logged):
        yield from _wrongly_kept(kept, journals, said)


def _sent_points(journals: Sequence[Journal]) -> dict[Point, tuple[int, int]]:
    """Return all points with sequence and hash; also what was sent before a gap replaced it."""
    return {
        point: (sequence, value)
        for journal in journals
        for sequence, points in (
            *journal.replaced.items(),
            *((sequence, sent.points) for sequence, sent in journal.sent.items()),
        )
        for point, value in points.items()
    }


def _wrongly_kept(
    kept: Kept, journals: Sequence[Journal], said: Mapping[tuple[str, int], Sent]
) -> Iterator[Violation]:
    for journal in journals:
        if journal.outbox_id == kept.outbox_id and (
            kept.sequence <= journal.checked.through or kept.sequence in journal.excused
        ):
            return  # sent again before its acknowledgement was heard
    each = said.get((kept.outbox_id, kept.sequence))
    if each is None or (each != kept.sent and each.gap is None):
        yield Violation(
            kind="invented" if each is None else "altered",
            asset_uid=kept.asset_uid,
            sequence=kept.sequence,
            detail="in the log or in quarantine",
        )


def _lost(journal: Journal, here: _Held, through: int) -> Iterator[Violation]:
    kept = here.kept(journal.outbox_id)
    for sequence in range(journal.checked.through + 1, through + 1):
        sent = journal.sent.get(sequence)
        if sent is None or sequence in journal.excused or sequence in kept:
            continue  # never sent is a contradiction, and told as one
        if sent.gap is not None:
            missing = int((journal.outbox_id, sequence) not in here.gaps)
        else:
            missing = sum(point not in here.rows for point in sent.points)
        if missing:
            detail = f"{missing} of {len(sent.points) or 1}"
            yield Violation(
                kind="lost", asset_uid=journal.asset_uid, sequence=sequence, detail=detail
            )


def _out_of_order(journal: Journal, here: _Held) -> Iterator[Violation]:
    latest_us, in_database = journal.checked.received_us, set()
    for sequence, sent in sorted(journal.sent.items()):
        rows = [here.rows[point] for point in sent.points if point in here.rows]
        if rows:
            in_database.add(sequence)
        received = [row.received_us for row in rows if row.received_us]
        if received and min(received) < latest_us:
            yield Violation(
                kind="out of order",
                asset_uid=journal.asset_uid,
                sequence=sequence,
                detail=f"received at {min(received)}, after a later one at {latest_us}",
            )
        latest_us = max([latest_us, *received])
    yield from _out_of_order_in_log(journal, here, in_database)


def _out_of_order_in_log(
    journal: Journal, here: _Held, in_database: set[int]
) -> Iterator[Violation]:
    highest, seen = 0, Counter(in_database)
    for kept in here.logged:
        if kept.outbox_id != journal.outbox_id:
            continue
        again = seen[kept.sequence] or kept.sequence <= journal.checked.through
        if kept.sequence < highest and not again:
            yield Violation(
                kind="out of order",
                asset_uid=journal.asset_uid,
                sequence=kept.sequence,
                detail=f"after {highest} in the log",
            )
        seen[kept.sequence] += 1
        highest = max(highest, kept.sequence)
