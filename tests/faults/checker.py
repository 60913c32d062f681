"""Compares what agents did with what the database holds. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from tests.field.sender import Journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of telemetry."""

    asset_uid: str
    ts_us: int
    watts: float
    received_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """All that the database holds of the field."""

    rows: tuple[Row, ...]
    quarantined: frozenset[tuple[str, int]] = frozenset()
    """Asset uid and sequence of batches in quarantine."""


def violations(journals: Iterable[Journal], stored: Stored) -> Iterator[str]:
    """Yield what must not be; nothing, if every promise was kept.

    Acknowledged is stored or quarantined; nothing is there twice, altered or invented; samples of
    one asset were received in the order of their sequences.
    """
    by_asset: dict[str, dict[int, Row]] = {}
    for row in stored.rows:
        rows = by_asset.setdefault(row.asset_uid, {})
        if row.ts_us in rows:
            yield f"duplicate: {row.asset_uid} at {row.ts_us}"
        rows[row.ts_us] = row
    for journal in journals:
        rows = by_asset.pop(journal.asset_uid, {})
        yield from _missing(journal, rows, stored.quarantined)
        yield from _wrong(journal, rows)
        yield from _out_of_order(journal, rows)
    for uid, rows in by_asset.items():
        yield f"invented: {len(rows)} rows of {uid}, which nobody played"


def _missing(
    journal: Journal, rows: Mapping[int, Row], quarantined: frozenset[tuple[str, int]]
) -> Iterator[str]:
    for sequence in range(1, journal.acknowledged + 1):
        if (journal.asset_uid, sequence) in quarantined:
            continue
        lost = [ts_us for ts_us, _ in journal.sent[sequence] if ts_us not in rows]
        if lost:
            yield f"lost: {journal.asset_uid} batch {sequence}, {len(lost)} samples"


def _wrong(journal: Journal, rows: Mapping[int, Row]) -> Iterator[str]:
    sent = {ts_us: watts for batch in journal.sent.values() for ts_us, watts in batch}
    for ts_us, row in rows.items():
        if ts_us not in sent:
            yield f"invented: {journal.asset_uid} at {ts_us}"
        elif sent[ts_us] != row.watts:
            yield f"altered: {journal.asset_uid} at {ts_us}: {row.watts} is not {sent[ts_us]}"


def _out_of_order(journal: Journal, rows: Mapping[int, Row]) -> Iterator[str]:
    latest_us = 0
    for sequence, batch in sorted(journal.sent.items()):
        received = [rows[ts_us].received_us for ts_us, _ in batch if ts_us in rows]
        if received and min(received) < latest_us:
            yield f"out of order: {journal.asset_uid} batch {sequence}"
        latest_us = max([latest_us, *received])
