"""What became of dispatches: was it applied, when, for how long, and why did it end as it did.

Reads ``dispatch_summary``, which is the table ``dispatch``, and the steps in ``dispatch_event``;
what another asset's agent says about a dispatch is left out. While the dispatches from before that
table have no rows yet, it reads the view ``dispatch_history``: the same answers, slower.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString, NamedTuple

import psycopg
from psycopg.rows import class_row

from derops_headend.storage.dispatches import is_filled

MOST_ROWS = 1000
"""The most rows of one answer; a longer one is asked for in pages."""


class DispatchPosition(NamedTuple):
    """Where a dispatch stands in the order of ``find``."""

    first_at: datetime
    dispatch_uid: str
    namespace: str
    asset_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatched:
    """One dispatch. Times of what the device did are by the agent's clock."""

    dispatch_uid: str
    namespace: str
    dispatch_name: str | None
    asset_name: str
    phase: str
    applied: bool | None
    """Whether the device took it; None = nobody knows."""

    reason: str
    message: str
    first_at: datetime
    accepted_at: datetime | None
    applied_at: datetime | None
    ended_at: datetime | None
    reverted_at: datetime | None
    applied_watts: int | None
    active_seconds: float | None
    within_tolerance_seconds: float | None
    delivered_watt_hours: float | None
    evidence: str
    """Empty, Unanswered, Written, ReadBack or Effect."""

    verified: str
    """Empty, True, False or Unknown."""

    verified_reason: str
    verified_at: datetime | None
    planned_start_at: datetime | None
    planned_end_at: datetime | None
    interruptions: int
    """How often the setpoint was interrupted and taken up again."""

    clamped_by: str
    """The limit that ``applied_watts`` was cut to; empty = none."""

    reversion_guard: str
    """What ended the setpoint if the agent could not: AgentTimer or DeviceTimer."""

    clock_offset_milliseconds: int | None
    """The gateway's clock less the agent's, as the agent last measured it."""

    superseded_by: str
    """Uid of the dispatch that took its place; empty = none."""

    reported_phase: str | None
    """What the agent said last; other than ``phase`` if it said so after the end."""

    reported_reason: str | None
    reported_at: datetime | None
    created_by: str | None
    """Who ordered it; None = the operator did not say, unknown = nobody can know."""

    request_id: str | None
    """Of the call of the API that ordered it; None = it was ordered otherwise, or nobody knows."""

    @property
    def place(self) -> DispatchPosition:
        """Where it stands in the order of ``find``."""
        return DispatchPosition(self.first_at, self.dispatch_uid, self.namespace, self.asset_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One transition of a dispatch."""

    at: datetime
    """The instant, by the clock of the actor."""

    received_at: datetime
    """When the headend heard of it."""

    actor: str
    phase: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EndingCount:
    """How many dispatches ended in one way."""

    phase: str
    reason: str
    dispatches: int
    applied: int
    unknown: int
    """How many the device may have taken or not: nobody knows."""

    verified: int
    refuted: int
    """How many were applied, and their measured power was not what it should be."""

    active_seconds: float
    delivered_watt_hours: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchFilter:
    """Which dispatches; None does not restrict."""

    namespace: str | None = None
    asset_name: str | None = None
    dispatch: str | None = None
    """Uid, or name: names may be used again, so several dispatches can have one."""

    dispatch_uid: str | None = None
    phase: str | None = None
    since: datetime | None = None
    """The first transition is not before this instant."""

    until: datetime | None = None
    """The first transition is before this instant."""

    created_by: str | None = None


_COLUMNS = ", ".join(
    f"{name}::double precision" if name.endswith("_seconds") else name
    for name in Dispatched.__dataclass_fields__
)
_RESTRICTIONS: dict[str, LiteralString] = {
    "namespace": "namespace = %(namespace)s",
    "asset_name": "asset_name = %(asset_name)s",
    "dispatch": "(dispatch_uid = %(dispatch)s or dispatch_name = %(dispatch)s)",
    "dispatch_uid": "dispatch_uid = %(dispatch_uid)s",
    "phase": "phase = %(phase)s",
    "since": "first_at >= %(since)s",
    "until": "first_at < %(until)s",
    "created_by": "created_by = %(created_by)s",
}


def find(
    connection: psycopg.Connection,
    wanted: DispatchFilter,
    *,
    after: DispatchPosition | None = None,
    limit: int = MOST_ROWS,
) -> list[Dispatched]:
    """Return dispatches, the newest first.

    Args:
        connection: To the migrated database.
        wanted: Which dispatches.
        after: The place of the last dispatch of the page before.
        limit: The most dispatches, 1 to 1000.
    """
    where, facts = _where(wanted)
    if after is not None:
        where += " and (first_at, dispatch_uid, namespace, asset_name) < "
        where += (
            "(%(after_first_at)s, %(after_dispatch_uid)s, %(after_namespace)s, "
            "%(after_asset_name)s)"
        )
        facts |= {f"after_{name}": value for name, value in after._asdict().items()}
    text = (
        f"select {_COLUMNS} from {lines_of(connection)} where {where} "  # noqa: S608  # our own names
        "order by first_at desc, dispatch_uid desc, namespace desc, asset_name desc "
        "limit %(limit)s"
    )
    with connection.cursor(row_factory=class_row(Dispatched)) as cursor:
        return cursor.execute(
            text.encode(), facts | {"limit": max(1, min(limit, MOST_ROWS))}, binary=True
        ).fetchall()


def read_story(connection: psycopg.Connection, dispatch: Dispatched) -> list[Step]:
    """Return the transitions of one dispatch, in the order in which they happened.

    The first thousand, if there are more. What other assets' agents claim of its uid is none of
    them.
    """
    with connection.cursor(row_factory=class_row(Step)) as cursor:
        return cursor.execute(
            "select at, received_at, actor, phase, reason, message from dispatch_event "
            "where dispatch_uid = %s and subject = %s order by at, received_at limit %s",
            (dispatch.dispatch_uid, f"{dispatch.namespace}/{dispatch.asset_name}", MOST_ROWS),
        ).fetchall()


def sum_up(connection: psycopg.Connection, wanted: DispatchFilter) -> list[EndingCount]:
    """Return how the dispatches ended, the most frequent first."""
    where, facts = _where(wanted)
    text = (
        "select phase, reason, count(*) as dispatches, "  # noqa: S608  # our own names
        "count(*) filter (where applied) as applied, "
        "count(*) filter (where applied is null) as unknown, "
        "count(*) filter (where verified = 'True') as verified, "
        "count(*) filter (where verified = 'False') as refuted, "
        "coalesce(sum(active_seconds), 0)::double precision as active_seconds, "
        "coalesce(sum(delivered_watt_hours), 0) as delivered_watt_hours "
        f"from {lines_of(connection)} where {where} group by phase, reason "
        "order by count(*) desc, phase, reason"
    )
    with connection.cursor(row_factory=class_row(EndingCount)) as cursor:
        return cursor.execute(text.encode(), facts).fetchall()


def _where(wanted: DispatchFilter) -> tuple[str, dict[str, Any]]:
    facts = {name: getattr(wanted, name) for name in _RESTRICTIONS}
    given = {name: value for name, value in facts.items() if value is not None}
    return " and ".join(["true", *(_RESTRICTIONS[name] for name in given)]), given


def lines_of(connection: psycopg.Connection) -> LiteralString:
    """Return the view with a line for each dispatch; of two, the faster one."""
    return "dispatch_summary" if is_filled(connection) else "dispatch_history"
