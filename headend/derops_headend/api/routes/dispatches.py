"""Routes of Dispatches: list, read, order, try, cancel."""

import uuid
from typing import Annotated

import structlog
from fastapi import APIRouter, Header, Query, Response
from starlette.requests import Request

from derops.instants import format_instant
from derops.lifecycle import Phase
from derops.log_fields import dispatch_fields
from derops.resources.dispatches import DispatchSpec
from derops_headend.api.assets import view_of as asset_view_of
from derops_headend.api.call import Call, CallOf
from derops_headend.api.dry_run import Charge, Foresight, KnownFacts, facts_of, judge
from derops_headend.api.models import NAME_PATTERN, Model
from derops_headend.api.orders import (
    CREATED_BY,
    REQUEST_ID,
    DispatchView,
    NewDispatch,
    canonical,
    manifest_of,
    sha256_of,
    view_of,
)
from derops_headend.api.parameters import DispatchName, Namespace
from derops_headend.api.placement import Asked, Placing
from derops_headend.api.ports import Manifest, Parts
from derops_headend.api.problems import Fault, ProblemError, Slug, not_found
from derops_headend.api.routes.permission import allow, note
from derops_headend.storage.newest import AssetKey, find_newest

router = APIRouter(tags=["dispatches"])

_log = structlog.get_logger("dispatches")

MOST_ROWS = 500
_MOST_TRIES = 5
"""The most tries of a cancel: each status that the operator writes meanwhile is a new version."""

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="Names the order: repeated calls with it make one. Required, but for dryRun.",
        min_length=1,
        max_length=128,
        pattern=r"^[\x21-\x7e]+$",
    ),
]


class DispatchList(Model):
    """A part of the Dispatches of a namespace."""

    items: list[DispatchView]
    next: str | None = None


@router.get(
    "/v1/namespaces/{namespace}/dispatches",
    operation_id="listDispatches",
    summary="Dispatches of a namespace",
    response_model_exclude_none=True,
    responses={410: {}},
)
async def list_dispatches(
    request: Request,
    namespace: Namespace,
    limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 100,
    after: Annotated[
        str | None, Query(description="`next` of the page before", min_length=1, max_length=2048)
    ] = None,
    phase: Annotated[Phase | None, Query(description="Their phase")] = None,
    asset: Annotated[
        str | None, Query(description="Name of the asset", max_length=63, pattern=NAME_PATTERN)
    ] = None,
) -> DispatchList:
    """Return Dispatches as Kubernetes has them, by name; deleted ones are in the history."""
    parts = await allow(request, "list", "dispatches", namespace)
    selector = {
        name: value
        for name, value in (("status.phase", phase), ("spec.assetRef.name", asset))
        if value is not None
    }
    page = await parts.kubernetes.dispatches(namespace, limit=limit, after=after, selector=selector)
    return DispatchList(items=[view_of(each) for each in page.items], next=page.next)


@router.get(
    "/v1/namespaces/{namespace}/dispatches/{name}",
    operation_id="getDispatch",
    summary="One Dispatch",
    response_model_exclude_none=True,
)
async def get_dispatch(
    request: Request, call: CallOf, namespace: Namespace, name: DispatchName
) -> DispatchView:
    """Return a Dispatch as Kubernetes has it."""
    parts = await allow(request, "get", "dispatches", namespace, name)
    manifest = await _read(parts, namespace, name)
    call.subject.object_uid = manifest["metadata"]["uid"]
    return view_of(manifest)


@router.post(
    "/v1/namespaces/{namespace}/dispatches",
    operation_id="createDispatch",
    summary="Order something of an asset, or try to",
    status_code=201,
    response_model=None,
    responses={
        200: {
            "model": DispatchView | Foresight,
            "description": "An earlier call made it; or a dry run",
            "headers": {
                "Idempotency-Replayed": {
                    "description": "`true` where an earlier call made it",
                    "schema": {"type": "string"},
                }
            },
        },
        201: {
            "model": DispatchView,
            "headers": {"Location": {"description": "Its path", "schema": {"type": "string"}}},
        },
        403: {},
        409: {},
    },
)
async def create_dispatch(
    request: Request,
    call: CallOf,
    namespace: Namespace,
    order: NewDispatch,
    key: KeyHeader = None,
    dry_run: Annotated[
        bool, Query(alias="dryRun", description="Make nothing; say what would become of it")
    ] = False,
) -> Response:
    """Make a Dispatch, once for each Idempotency-Key; its start is written down with the first.

    A key is the caller's own in a namespace. It is remembered for 30 days.
    """
    call.subject.dry_run = dry_run
    if not dry_run and key is None:
        raise _no_key()
    if key is None or dry_run:
        parts = await allow(request, "create", "dispatches", namespace, fresh=True)
        return _answer(await _foresee(parts, call, namespace, order), 200)
    note(request, "create", "dispatches", namespace)
    placing: Placing = request.app.state.placing
    placed = await placing.place(Asked(call=call, namespace=namespace, order=order, key=key))
    view = view_of(placed.dispatch)
    _log.info(
        "dispatch.repeated" if placed.replayed else "dispatch.created", **_fields_of(call, view)
    )
    if placed.replayed:
        return _answer(view, 200, {"Idempotency-Replayed": "true"})
    return _answer(view, 201, {"Location": f"/v1/namespaces/{namespace}/dispatches/{view.name}"})


@router.post(
    "/v1/namespaces/{namespace}/dispatches/{name}/cancel",
    operation_id="cancelDispatch",
    summary="Withdraw an order",
    response_model_exclude_none=True,
    responses={403: {}, 409: {}},
)
async def cancel_dispatch(
    request: Request,
    call: CallOf,
    namespace: Namespace,
    name: DispatchName,
    uid: Annotated[
        str | None,
        Query(description="Cancel it only if it still is this object", min_length=1, max_length=64),
    ] = None,
) -> DispatchView:
    """Withdraw an order; its device is reverted if it was reached. There is no way back.

    One that is cancelled already is answered as it is. One that has ended otherwise is a conflict:
    nothing can be withdrawn.
    """
    parts = await allow(request, "patch", "dispatches", namespace, name, fresh=True)
    manifest = await _read(parts, namespace, name)
    uid = uid or manifest["metadata"]["uid"]
    for _ in range(_MOST_TRIES):
        if manifest["metadata"]["uid"] != uid:
            raise ProblemError(
                Slug.CONFLICT, "the Dispatch of this uid is gone: another one has its name now"
            )
        call.subject.object_uid = uid
        if manifest["spec"].get("desiredState") == "Cancelled":
            return view_of(manifest)
        _refuse_ended(manifest)
        if not call.subject.change:
            call.subject.change = {"desiredState": "Cancelled"}
            await parts.audit.announce(call)
        try:
            view = view_of(
                await parts.kubernetes.patch_dispatch(manifest, {"desiredState": "Cancelled"})
            )
            _log.info("dispatch.cancel_asked", **_fields_of(call, view))
            return view
        except ProblemError as problem:
            if problem.slug is not Slug.CONFLICT:
                raise
        manifest = await _read(parts, namespace, name)
    raise ProblemError(
        Slug.CONFLICT,
        f"the Dispatch changed during each of {_MOST_TRIES} tries: try again",
        retry_after_seconds=1,
    )


def _fields_of(call: Call, view: DispatchView) -> dict[str, str]:
    """Return what a line about a dispatch says of it, and of the call that is answered."""
    return dispatch_fields(
        namespace=view.namespace,
        asset=view.asset,
        dispatch=view.name,
        uid=view.uid,
        request_id=call.request_id,
    )


def _answer(body: Model, status: int, headers: dict[str, str] | None = None) -> Response:
    text = body.model_dump_json(by_alias=True, exclude_none=True)
    return Response(text, status, headers, media_type="application/json")


async def _read(parts: Parts, namespace: str, name: str) -> Manifest:
    manifest = await parts.kubernetes.dispatch(namespace, name)
    if manifest is None:
        raise not_found()
    return manifest


async def _foresee(parts: Parts, call: Call, namespace: str, order: NewDispatch) -> Foresight:
    subject = call.subject
    subject.name = order.name or f"api-dry-run-{uuid.uuid4().hex[:20]}"
    subject.change = canonical(order)
    subject.body_sha256 = sha256_of(subject.change)
    manifest = manifest_of(
        order,
        namespace,
        subject.name,
        order.start_time or format_instant(parts.now()),
        {CREATED_BY: call.caller.name, REQUEST_ID: call.request_id},
    )
    made = await parts.kubernetes.create_dispatch(namespace, manifest, dry_run=True)
    made["metadata"]["uid"] = made["metadata"]["resourceVersion"] = ""
    known = parts.kubernetes.asset(namespace, order.asset)
    view = asset_view_of(known) if known is not None else None
    charge = None
    if known is not None:
        charge = await _charge(parts, call, AssetKey(namespace, known.name, known.uid))
    seen = KnownFacts(view, parts.kubernetes.heard_seconds_ago, charge, parts.now())
    judgement = judge(DispatchSpec.model_validate(made["spec"]), seen)
    return Foresight(
        result=judgement.result,
        phase=judgement.phase,
        reason=judgement.reason,
        message=judgement.message,
        facts=facts_of(seen),
        dispatch=view_of(made),
    )


async def _charge(parts: Parts, call: Call, key: AssetKey) -> Charge | None:
    """Return the state of charge, if it is known and the caller may know it; else None."""
    try:
        seeing = await parts.rights.decide(
            call.caller, "get", "derassets/telemetry", key.namespace, key.name
        )
        if not seeing.allowed:
            return None
        newest = await parts.database.read(find_newest, [key], parts.now())
    except ProblemError:
        return None
    sample = newest.get(key.uid)
    percent = sample.values.get("state_of_charge_percent") if sample is not None else None
    return Charge(percent, sample.at) if sample is not None and percent is not None else None


def _refuse_ended(manifest: Manifest) -> None:
    phase = (manifest.get("status") or {}).get("phase", Phase.SUBMITTED)
    if Phase(phase).terminal:
        raise ProblemError(
            Slug.CONFLICT, f"the Dispatch has ended as {phase}: nothing is left to withdraw"
        )


def _no_key() -> ProblemError:
    return ProblemError(
        Slug.INVALID,
        "An order needs an Idempotency-Key, by which its repetitions are known",
        faults=[
            Fault(
                code="missing",
                detail="is required: 1 to 128 visible ASCII characters, new for each order",
                parameter="Idempotency-Key",
            )
        ],
    )
