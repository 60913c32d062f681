"""History and quarantine: what is stored row by row."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import numpy as np
import psycopg
from numpy.typing import NDArray

from derops.instants import moment_of
from derops_headend.writing.refusals import clean
from derops_headend.writing.rows import Batch, EventRow, LogSource, Quarantined

_EVENT = """
    insert into dispatch_event as old (
      event_id, asset_id, dispatch_uid, dispatch_name, actor, phase, reason, message, at,
      received_at, subject, created_by, request_id,
      report, report_ledger_id, report_sequence, report_received_at
    ) select * from unnest(
      %s::uuid[], %s::int8[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[],
      %s::text[], %s::timestamptz[], %s::timestamptz[], %s::text[], %s::text[], %s::text[],
      %s::jsonb[], %s::text[], %s::numeric[], %s::timestamptz[]
    )
    on conflict (event_id, subject) do update set
      report = excluded.report,
      report_ledger_id = excluded.report_ledger_id,
      report_sequence = excluded.report_sequence,
      report_received_at = excluded.report_received_at
    where excluded.report is not null and (
      old.report is null
      or case when old.report_ledger_id = excluded.report_ledger_id
        then excluded.report_sequence > old.report_sequence
        else excluded.report_received_at > old.report_received_at end
    )
"""
_CONNECTION = """
    insert into connection_event (
      log_id, log_offset, entry_index, asset_id, event, reason, message, epoch, peer,
      serial_number, replica, at
    ) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing
"""
_GAP = """
    insert into telemetry_gap (
      asset_id, outbox_id, sequence, from_at, to_at, samples, reason, received_at
    ) values (%s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing
"""
_QUARANTINE = """
    insert into quarantine (
      log_id, log_offset, entry_index, kind, namespace, name, uid, reason, detail, body,
      received_at
    ) values (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s) on conflict do nothing
"""


def record(
    connection: psycopg.Connection, log_id: str, batch: Batch, ids: NDArray[np.int64]
) -> None:
    """Store transitions of dispatches, connection events and gaps.

    Args:
        connection: In a transaction.
        log_id: The log that they are from.
        batch: Has them.
        ids: The database's id for each of the batch's assets.
    """
    subjects = [f"{asset.namespace}/{asset.name}" for asset in batch.assets]
    with connection.cursor() as cursor:
        for turn in _turns(batch.events, subjects):
            rows = [
                (
                    row.event_id, int(ids[row.asset]), row.dispatch_uid, row.dispatch_name,
                    row.actor, row.phase, row.reason, row.message, moment_of(row.at_us),
                    moment_of(row.received_us), subjects[row.asset], row.created_by,
                    row.request_id,
                    *(
                        (row.report.json, row.report.ledger_id, row.report.sequence,
                         moment_of(row.received_us))
                        if row.report
                        else (None, None, None, None)
                    ),
                )
                for row in turn
            ]  # fmt: skip
            cursor.execute(_EVENT, [list(column) for column in zip(*rows, strict=True)])
        if batch.connections:
            cursor.executemany(
                _CONNECTION,
                [
                    (
                        *_place(log_id, batch.sources[row.source]), int(ids[row.asset]), row.event,
                        row.reason, row.message, row.epoch, row.peer, row.serial_number,
                        row.replica, moment_of(row.at_us),
                    )
                    for row in batch.connections
                ],
            )  # fmt: skip
        if batch.gaps:
            cursor.executemany(
                _GAP,
                [
                    (
                        int(ids[row.asset]), row.outbox_id, row.sequence, moment_of(row.from_us),
                        moment_of(row.to_us), row.samples, row.reason, moment_of(row.received_us),
                    )
                    for row in batch.gaps
                ],
            )  # fmt: skip


def quarantine(
    connection: psycopg.Connection,
    log_id: str,
    sources: Sequence[LogSource],
    quarantined: Sequence[Quarantined],
) -> Counter[str]:
    """Keep entries that could not be stored as they should be, and count their reasons."""
    rows = []
    for each in _one_each(quarantined):
        source = sources[each.source]
        asset, received_us = source.entry.asset, source.entry.received_us
        names = (clean(asset.namespace), clean(asset.name), clean(asset.uid))
        rows.append(
            (
                *_place(log_id, source), source.entry.kind, *names, each.reason, each.detail,
                source.entry.body, _instant_or_none(received_us),
            )
        )  # fmt: skip
    if rows:
        with connection.cursor() as cursor:
            cursor.executemany(_QUARANTINE, rows)
    return Counter(each.reason for each in quarantined)


def note_missing(connection: psycopg.Connection, log_id: str, first: int, last: int) -> None:
    """Say in quarantine that records were not in the log."""
    detail = f"records {first} to {last} were not in the log"
    connection.execute(
        _QUARANTINE, (log_id, first, -1, 0, "", "", "", "RecordsMissing", detail, b"", None)
    )


def _turns(events: Sequence[EventRow], subjects: Sequence[str]) -> list[list[EventRow]]:
    """Return the steps in as few parts as possible; no part has one step twice.

    A part is one statement, and a dispatch's row is derived once for each statement.
    """
    turns: list[list[EventRow]] = []
    told: Counter[tuple[UUID, str]] = Counter()
    for row in events:
        key = (row.event_id, subjects[row.asset])
        if told[key] == len(turns):
            turns.append([])
        turns[told[key]].append(row)
        told[key] += 1
    return turns


def _one_each(quarantined: Sequence[Quarantined]) -> list[Quarantined]:
    """Return one for each entry: the first, with what else there is to say about the entry."""
    found: dict[int, Quarantined] = {}
    for each in quarantined:
        known = found.setdefault(each.source, each)
        if known is not each:
            detail = f"{known.detail}; {each.reason}: {each.detail}"
            found[each.source] = replace(known, detail=detail)
    return list(found.values())


def _place(log_id: str, source: LogSource) -> tuple[str, int, int]:
    return log_id, source.offset, source.entry_index


def _instant_or_none(instant_us: int) -> datetime | None:
    try:
        return moment_of(instant_us)
    except OverflowError:
        return None
