"""Routes of the history: what became of dispatches, also of those that Kubernetes no longer has."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any
from urllib.parse import urlencode

import psycopg
from fastapi import APIRouter, Path, Query
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter
from pydantic.alias_generators import to_camel
from starlette.requests import Request
from starlette.responses import Response

from derops.lifecycle import Phase
from derops_headend.api.call import call_of
from derops_headend.api.models import Model
from derops_headend.api.pages import page_after, place_of
from derops_headend.api.parameters import (
    Instant,
    Namespace,
    StoredText,
    WholeNumber,
    choose_media,
)
from derops_headend.api.problems import not_found
from derops_headend.api.routes.permission import allow_rows, later
from derops_headend.storage.history import (
    Dispatched,
    DispatchFilter,
    DispatchPosition,
    Step,
    find,
    read_story,
    sum_up,
)

MOST_ROWS, ROWS = 500, 100
_JSON, _CSV = "application/json", "text/csv"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

_PLACE = TypeAdapter(tuple[AwareDatetime, StoredText, StoredText, StoredText])

router = APIRouter(tags=["history"])

Uid = Annotated[
    str, Path(description="Of the Dispatch", max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")
]


class HistoryQuery(BaseModel):
    """Which dispatches; what is absent does not restrict."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)

    asset: str | None = Field(
        default=None, max_length=253, pattern=r"^[-.a-z0-9]+$", description="Name of the DERAsset."
    )
    phase: Phase | None = Field(default=None, description="Their phase.")
    since: Instant | None = Field(
        default=None, description="First heard of at this instant or later."
    )
    until: Instant | None = Field(default=None, description="First heard of before this instant.")
    created_by: str | None = Field(
        default=None,
        max_length=512,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="Who ordered it, as Kubernetes names its users; `unknown` is a value as well.",
    )
    dispatch: str | None = Field(
        default=None,
        max_length=256,
        pattern=r"^[^\x00-\x1f\x7f]+$",
        description="Uid, or name; a name may be used again, so several can have it.",
    )

    def wanted(self, namespace: str, since: datetime | None) -> DispatchFilter:
        """Return the filter, for a caller whose rows are those since an instant; None = all."""
        return DispatchFilter(
            namespace=namespace,
            asset_name=self.asset,
            phase=self.phase and self.phase.value,
            since=later(self.since, since),
            until=self.until,
            created_by=self.created_by,
            dispatch=self.dispatch,
        )


class HistoryPageQuery(HistoryQuery):
    """Which dispatches, and which page of them."""

    limit: WholeNumber = Field(default=ROWS, ge=1, le=MOST_ROWS)
    after: str = Field(
        default="",
        max_length=1000,
        pattern=r"^[A-Za-z0-9_-]*$",
        description="`next` of the page before.",
    )


class HistoryItem(Model):
    """One dispatch. Instants are by the agent's clock, but `firstAt` and `reportedAt`."""

    uid: str
    namespace: str
    name: str | None = Field(description="null = only an agent spoke of it")
    asset: str
    phase: str
    reason: str
    message: str
    applied: bool | None = Field(description="Whether the device took it; null = nobody knows")
    created_by: str | None = Field(
        description="Who ordered it; null = nobody said, `unknown` = nobody can know"
    )
    request_id: str | None = Field(
        description="`X-Request-Id` of the call that ordered it; null = none, or nobody knows"
    )
    first_at: datetime
    accepted_at: datetime | None
    planned_start_at: datetime | None
    applied_at: datetime | None
    verified_at: datetime | None
    ended_at: datetime | None
    reverted_at: datetime | None
    planned_end_at: datetime | None
    applied_watts: int | None = Field(description="Positive power flows into the grid")
    clamped_by: str
    active_seconds: float | None
    within_tolerance_seconds: float | None
    delivered_watt_hours: float | None
    interruptions: int
    evidence: str
    verified: str
    verified_reason: str
    reversion_guard: str
    clock_offset_milliseconds: int | None = Field(
        description="The gateway's clock less the agent's"
    )
    superseded_by: str = Field(description="Uid; empty = none")
    reported_phase: str | None
    reported_reason: str | None
    reported_at: datetime | None


class HistoryPage(Model):
    """Dispatches, the newest first."""

    items: list[HistoryItem]
    next: str | None = Field(description="Where the next page begins: `after`; null = nowhere")


class HistoryStep(Model):
    """A step of a dispatch."""

    at: datetime = Field(description="By the clock of the actor")
    received_at: datetime
    actor: str
    phase: str
    reason: str
    message: str


class HistoryOfOne(HistoryItem):
    """A dispatch, and how it went."""

    steps: list[HistoryStep] = Field(description="In their order; the first 1,000")


class HistoryEnding(Model):
    """How many dispatches ended in one way."""

    phase: str
    reason: str
    dispatches: int
    applied: int
    unknown: int = Field(description="Nobody knows whether the device took them")
    verified: int
    refuted: int = Field(description="Applied, and the measured power was not what it should be")
    active_seconds: float
    delivered_watt_hours: float


class HistorySummary(Model):
    """How dispatches ended, the most frequent first."""

    items: list[HistoryEnding]


@router.get(
    "/v1/namespaces/{namespace}/history",
    operation_id="listHistory",
    summary="What became of dispatches",
    response_class=Response,
    responses={
        200: {
            "model": HistoryPage,
            "description": "A page; as CSV with the same names, and the next page in `Link`",
            "content": {_CSV: {"schema": {"type": "string"}}},
        },
        406: {},
    },
)
async def list_history(
    request: Request, namespace: Namespace, query: Annotated[HistoryPageQuery, Query()]
) -> Response:
    """Return dispatches, the newest first, also those that Kubernetes no longer has."""
    media = choose_media(request, (_JSON, _CSV))
    parts, since = await allow_rows(request, "list", "dispatches", namespace)
    after = None
    if query.after:
        after = DispatchPosition(*place_of(query.after, _PLACE))
    found = await parts.database.read(
        find, query.wanted(namespace, since), after=after, limit=query.limit + 1
    )
    shown = found[: query.limit]
    following = page_after(*shown[-1].place) if len(found) > query.limit else None
    if media == _CSV:
        return _as_csv(request, shown, following)
    page = HistoryPage(items=[HistoryItem(**_facts(each)) for each in shown], next=following)
    return Response(page.model_dump_json(by_alias=True), media_type=_JSON)


@router.get(
    "/v1/namespaces/{namespace}/history/summary",
    operation_id="summarizeHistory",
    summary="How dispatches ended",
    response_model=HistorySummary,
    responses={406: {}},
)
async def summarize_history(
    request: Request, namespace: Namespace, query: Annotated[HistoryQuery, Query()]
) -> Response:
    """Return how many dispatches ended in which way."""
    choose_media(request, (_JSON,))
    parts, since = await allow_rows(request, "list", "dispatches", namespace)
    endings = await parts.database.read(sum_up, query.wanted(namespace, since))
    body = HistorySummary(items=[HistoryEnding(**asdict(each)) for each in endings])
    return Response(body.model_dump_json(by_alias=True), media_type=_JSON)


@router.get(
    "/v1/namespaces/{namespace}/history/{uid}",
    operation_id="getHistory",
    summary="What became of one dispatch, step by step",
    response_model=HistoryOfOne,
    responses={406: {}},
)
async def get_history(request: Request, namespace: Namespace, uid: Uid) -> Response:
    """Return a dispatch with its steps.

    If only agents reported it, and those of several assets did, the newest is returned.
    """
    choose_media(request, (_JSON,))
    call_of(request).subject.object_uid = uid
    parts, since = await allow_rows(request, "list", "dispatches", namespace)
    found = await parts.database.read(
        _read_one, DispatchFilter(namespace=namespace, dispatch_uid=uid, since=since)
    )
    if found is None:
        raise not_found()
    dispatched, steps = found
    body = HistoryOfOne(**_facts(dispatched), steps=[HistoryStep(**asdict(each)) for each in steps])
    return Response(body.model_dump_json(by_alias=True), media_type=_JSON)


def _read_one(
    connection: psycopg.Connection, wanted: DispatchFilter
) -> tuple[Dispatched, list[Step]] | None:
    found = find(connection, wanted, limit=1)
    return (found[0], read_story(connection, found[0])) if found else None


def _facts(dispatched: Dispatched) -> dict[str, Any]:
    facts = asdict(dispatched)
    for ours, theirs in (("dispatch_uid", "uid"), ("dispatch_name", "name")):
        facts[theirs] = facts.pop(ours)
    facts["asset"] = facts.pop("asset_name")
    return facts


def _as_csv(request: Request, shown: Sequence[Dispatched], following: str | None) -> Response:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    names = list(HistoryItem.model_fields)
    writer.writerow(to_camel(name) for name in names)
    for each in shown:
        facts = _facts(each)
        writer.writerow(_cell(facts[name]) for name in names)
    headers = {"content-disposition": 'attachment; filename="history.csv"'}
    if following is not None:
        query = {**request.query_params, "after": following}
        headers["link"] = f'<{request.url.path}?{urlencode(query)}>; rel="next"'
    return Response(text.getvalue(), media_type=_CSV, headers=headers)


def _cell(value: object) -> object:
    """Return a cell: text that a spreadsheet would take for a formula gets an apostrophe."""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat().replace("+00:00", "Z") if isinstance(value, datetime) else value
