"""Routes of telemetry: samples, gaps, connections, and measurements without a column."""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Annotated, Any, NamedTuple, TypeVar

import psycopg
from fastapi import APIRouter, Query
from pydantic import AwareDatetime, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from derops_headend.api.call import call_of
from derops_headend.api.exports import Export
from derops_headend.api.models import Model
from derops_headend.api.pages import page_after, place_of
from derops_headend.api.parameters import (
    AssetName,
    BigInteger,
    Integer,
    Namespace,
    Natural,
    StoredText,
    choose_media,
)
from derops_headend.api.ports import Parts
from derops_headend.api.problems import ProblemError, not_found
from derops_headend.api.routes.permission import allow_rows
from derops_headend.api.telemetry import (
    INTERVAL_SECONDS,
    Lives,
    TelemetrySelection,
    answer,
    check,
    choose_life,
)
from derops_headend.api.telemetry_models import (
    ConnectionEvent,
    ConnectionPage,
    DroppedSamples,
    GapPage,
    MeasurementQuery,
    Measurements,
    PageQuery,
    Telemetry,
    TelemetryQuery,
    TimeSpan,
)
from derops_headend.storage import asset_events
from derops_headend.storage.resolution import TelemetrySource

T = TypeVar("T")

MOST_NAMES = 500
_JSON, _CSV = "application/json", "text/csv"

_GAP_PLACE = TypeAdapter(tuple[AwareDatetime, StoredText, Natural])
_CONNECTED_PLACE = TypeAdapter(tuple[AwareDatetime, StoredText, BigInteger, Integer])

router = APIRouter(tags=["telemetry"])


@router.get(
    "/v1/namespaces/{namespace}/assets/{name}/telemetry",
    operation_id="getTelemetry",
    summary="What an asset measured",
    response_class=Response,
    responses={
        200: {
            "model": Telemetry,
            "description": "Columns; as CSV with the same names",
            "content": {_CSV: {"schema": {"type": "string"}}},
        },
        406: {},
    },
)
async def get_telemetry(
    request: Request,
    namespace: Namespace,
    name: AssetName,
    query: Annotated[TelemetryQuery, Query()],
) -> Response:
    """Return samples, or steps if there would be too many.

    `text/csv` with `raw`, `1m` or `15m` has up to 100,000 lines; a caller gets one at a time.
    """
    media = choose_media(request, (_JSON, _CSV))
    asset = await _open(request, namespace, name)
    parts: Parts = request.app.state.parts
    now = parts.now()
    first, end = query.between(now)
    wanted = TelemetrySelection(
        lives=Lives(namespace, name, query.uid, asset.uid, asset.since),
        first=first,
        end=end,
        quantities=query.columns,
        resolution=None if query.resolution == "auto" else TelemetrySource(query.resolution),
        most_points=query.max_points,
        as_csv=media == _CSV,
        now=now,
        interval_seconds=asset.interval_seconds,
    )
    check(wanted)

    async def make() -> bytes:
        return _found(await parts.database.read(answer, wanted))

    if media == _CSV:
        return Export(make, call_of(request).caller.share, _CSV, f"{namespace}.{name}.csv")
    return Response(await make(), media_type=_JSON)


@router.get(
    "/v1/namespaces/{namespace}/assets/{name}/measurements",
    operation_id="getMeasurements",
    summary="What has no column of its own",
    response_model=Measurements,
    responses={406: {}},
)
async def get_measurements(
    request: Request,
    namespace: Namespace,
    name: AssetName,
    query: Annotated[MeasurementQuery, Query()],
) -> Response:
    """Return which measurements there are, and the values of one of them."""
    place = await _place(request, namespace, name, query)
    return await _answer(request, _measurements, place, query.measurement, query.limit)


@router.get(
    "/v1/namespaces/{namespace}/assets/{name}/gaps",
    operation_id="listGaps",
    summary="Samples that an agent had to drop",
    response_model=GapPage,
    responses={406: {}},
)
async def list_gaps(
    request: Request, namespace: Namespace, name: AssetName, query: Annotated[PageQuery, Query()]
) -> Response:
    """Return gaps that touch a time, the newest first."""
    place = await _place(request, namespace, name, query)
    after = None
    if query.after:
        after = asset_events.GapPlace(*place_of(query.after, _GAP_PLACE))
    return await _answer(request, _gaps, place, query.limit, after)


@router.get(
    "/v1/namespaces/{namespace}/assets/{name}/connections",
    operation_id="listConnections",
    summary="When an asset's agent came and went",
    response_model=ConnectionPage,
    responses={406: {}},
)
async def list_connections(
    request: Request, namespace: Namespace, name: AssetName, query: Annotated[PageQuery, Query()]
) -> Response:
    """Return what happened to connections, the newest first."""
    place = await _place(request, namespace, name, query)
    after = None
    if query.after:
        after = asset_events.ConnectedPlace(*place_of(query.after, _CONNECTED_PLACE))
    return await _answer(request, _connections, place, query.limit, after)


class _AssetFacts(NamedTuple):
    """What Kubernetes says of an asset; nothing if the asset is gone, or Kubernetes away."""

    since: datetime | None
    """See ``allow_rows``."""

    uid: str = ""
    interval_seconds: int = INTERVAL_SECONDS


class _RowsOfTime(NamedTuple):
    """The rows of one asset and of one time."""

    lives: Lives
    first: datetime
    end: datetime


async def _open(request: Request, namespace: str, name: str) -> _AssetFacts:
    """Check the right to an asset's telemetry.

    Raises:
        ProblemError: NOT_FOUND: it may not be seen.
    """
    parts, since = await allow_rows(request, "get", "derassets/telemetry", namespace, name)
    try:
        known = parts.kubernetes.asset(namespace, name)
    except ProblemError:
        return _AssetFacts(since)  # the database has its rows all the same
    if known is None:
        return _AssetFacts(since)
    call_of(request).subject.object_uid = known.uid
    spec = json.loads(known.body).get("spec") or {}
    interval = spec.get("telemetry", {}).get("intervalSeconds", INTERVAL_SECONDS)
    return _AssetFacts(since, known.uid, max(1, interval))


async def _place(request: Request, namespace: str, name: str, query: TimeSpan) -> _RowsOfTime:
    choose_media(request, (_JSON,))
    asset = await _open(request, namespace, name)
    first, end = query.between(request.app.state.parts.now())
    return _RowsOfTime(Lives(namespace, name, query.uid, asset.uid, asset.since), first, end)


async def _answer(request: Request, ask: Callable[..., Model | None], *arguments: Any) -> Response:
    parts: Parts = request.app.state.parts
    found = _found(await parts.database.read(ask, *arguments))
    return Response(found.model_dump_json(by_alias=True), media_type=_JSON)


def _found(body: T | None) -> T:
    if body is None:
        raise not_found()
    return body


def _measurements(
    connection: psycopg.Connection, place: _RowsOfTime, measurement: str, limit: int
) -> Measurements | None:
    life, others = choose_life(connection, place.lives)
    if life is None:
        return None
    span = place.first, place.end
    names = asset_events.list_measurements(connection, life.asset_id, *span, MOST_NAMES)
    found = asset_events.Values((), ())
    if measurement:
        found = asset_events.read_measurement(
            connection, life.asset_id, measurement, *span, limit + 1
        )
    return Measurements(
        uid=life.uid,
        other_uids=others,
        names=names,
        time=list(found.times[:limit]),
        values=list(found.values[:limit]),
        next=found.times[limit] if len(found.times) > limit else None,
    )


def _gaps(
    connection: psycopg.Connection,
    place: _RowsOfTime,
    limit: int,
    after: asset_events.GapPlace | None,
) -> GapPage | None:
    life, others = choose_life(connection, place.lives)
    if life is None:
        return None
    rows = asset_events.list_gaps(
        connection, life.asset_id, place.first, place.end, limit + 1, after
    )
    last = rows[limit - 1] if len(rows) > limit else None
    return GapPage(
        uid=life.uid,
        other_uids=others,
        items=[
            DroppedSamples.model_validate(
                {
                    "from": each.from_at,
                    "to": each.to_at,
                    "samples": each.samples,
                    "reason": each.reason,
                    "receivedAt": each.received_at,
                }
            )
            for each in rows[:limit]
        ],
        next=page_after(*last[:3]) if last else None,
    )


def _connections(
    connection: psycopg.Connection,
    place: _RowsOfTime,
    limit: int,
    after: asset_events.ConnectedPlace | None,
) -> ConnectionPage | None:
    life, others = choose_life(connection, place.lives)
    if life is None:
        return None
    rows = asset_events.list_connections(
        connection, life.asset_id, place.first, place.end, limit + 1, after
    )
    last = rows[limit - 1] if len(rows) > limit else None
    shown = ConnectionEvent.model_fields
    return ConnectionPage(
        uid=life.uid,
        other_uids=others,
        items=[
            ConnectionEvent(**{key: getattr(each, key) for key in shown}) for each in rows[:limit]
        ],
        next=page_after(last.at, last.log_id, last.log_offset, last.entry_index) if last else None,
    )
