"""Routes of DERAssets: those that a caller may see, and one with its newest sample."""

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import Field
from pydantic.alias_generators import to_camel
from starlette.requests import Request

from derops.resources.derassets import AssetType, OperatingState
from derops_headend.api.assets import AssetFilter, AssetView, KnownAsset, Sort, choose
from derops_headend.api.call import CallOf
from derops_headend.api.models import NAME_PATTERN, Model
from derops_headend.api.parameters import AssetName, Namespace
from derops_headend.api.ports import Parts
from derops_headend.api.problems import ProblemError, not_found
from derops_headend.api.routes.permission import allow
from derops_headend.storage.newest import AssetKey, find_newest

router = APIRouter(tags=["assets"])

MOST_ROWS = 500
_MOST_NAMESPACES = 100
_MEDIA_TYPE = "application/json"

Truth = Literal["True", "False", "Unknown"]
IfNoneMatch = Annotated[
    str | None,
    Header(alias="If-None-Match", description="ETag of an earlier answer", max_length=1024),
]
ETAG = {"ETag": {"description": "Weak: ages do not count", "schema": {"type": "string"}}}


class AssetList(Model):
    """A part of a list of DERAssets."""

    namespaces: list[str] = Field(description="The namespaces that the list is of")
    items: list[AssetView]
    next: str | None = Field(default=None, description="Where the next page begins: `after`")


class Sample(Model):
    """What was measured at one instant; what was not measured is not there."""

    at: datetime = Field(description="By the agent's clock")
    age_seconds: float
    received_at: datetime
    values: dict[str, float] = Field(description="By quantity, with its unit in the name")


class AssetDetail(AssetView):
    """A DERAsset with its newest sample."""

    newest: Sample | None = Field(
        default=None, description="Not older than two days; none = there is none, see `missing`"
    )
    missing: list[Literal["database"]] = Field(
        default=[], description="What did not answer: its part is missing here"
    )


class Filter:
    """Parameters of a query that say which assets, and in which order."""

    def __init__(
        self,
        type: Annotated[AssetType | None, Query()] = None,  # noqa: A002  # its name in the query
        ready: Annotated[Truth | None, Query(description="Status of the condition Ready")] = None,
        connected: Annotated[
            Truth | None, Query(description="Status of the condition Connected")
        ] = None,
        operating_state: Annotated[OperatingState | None, Query(alias="operatingState")] = None,
        label: Annotated[
            list[Annotated[str, Query(max_length=400)]] | None,
            Query(
                description="A label: `name=value`, or `name` for any value; all must hold",
                max_length=10,
            ),
        ] = None,
        q: Annotated[str, Query(description="Part of the name", max_length=63)] = "",
        sort: Annotated[Sort, Query(description="Of equals by namespace and name")] = Sort.NAME,
        order: Annotated[Literal["asc", "desc"], Query()] = "asc",
        limit: Annotated[int, Query(ge=1, le=MOST_ROWS)] = 100,
        after: Annotated[
            str | None,
            Query(description="`next` of the page before", min_length=1, max_length=1024),
        ] = None,
    ) -> None:
        self.limit, self.after = limit, after
        pairs = [each.partition("=") for each in label or ()]
        self.wanted = AssetFilter(
            type=type,
            ready=ready,
            connected=connected,
            operating_state=operating_state,
            labels=[(name, value if equals else None) for name, equals, value in pairs],
            text=q,
            sort=sort,
            descending=order == "desc",
        )


@router.get(
    "/v1/assets",
    operation_id="listAllAssets",
    summary="DERAssets of all namespaces that I may see",
    response_model=AssetList,
    responses={200: {"headers": ETAG}, 304: {"description": "As it was"}},
)
async def list_all_assets(
    request: Request,
    call: CallOf,
    chosen: Annotated[Filter, Depends()],
    namespace: Annotated[
        list[Annotated[str, Query(max_length=63, pattern=NAME_PATTERN)]] | None,
        Query(
            description="Only this namespace, if I may see it; give it several times for several",
            max_length=_MOST_NAMESPACES,
        ),
    ] = None,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return DERAssets of several namespaces; the answer names the namespaces."""
    parts: Parts = request.app.state.parts
    call.subject.verb, call.subject.resource = "list", "derassets"
    known = parts.kubernetes.known_namespaces()
    among = known if namespace is None else sorted(set(namespace) & set(known))
    found = await parts.rights.namespaces(call.caller, "list", "derassets", among)
    return _list(parts, found, chosen, if_none_match)


@router.get(
    "/v1/namespaces/{namespace}/assets",
    operation_id="listAssets",
    summary="DERAssets of a namespace",
    response_model=AssetList,
    responses={200: {"headers": ETAG}, 304: {"description": "As it was"}},
)
async def list_assets(
    request: Request,
    namespace: Namespace,
    chosen: Annotated[Filter, Depends()],
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return DERAssets of a namespace."""
    parts = await allow(request, "list", "derassets", namespace)
    return _list(parts, [namespace], chosen, if_none_match)


@router.get(
    "/v1/namespaces/{namespace}/assets/{name}",
    operation_id="getAsset",
    summary="One DERAsset with its newest sample",
    response_model=AssetDetail,
    responses={200: {"headers": ETAG}, 304: {"description": "As it was"}},
)
async def get_asset(
    request: Request,
    call: CallOf,
    namespace: Namespace,
    name: AssetName,
    if_none_match: IfNoneMatch = None,
) -> Response:
    """Return a DERAsset; its newest sample needs the right to get ``derassets/telemetry``."""
    parts = await allow(request, "get", "derassets", namespace, name)
    asset = parts.kubernetes.asset(namespace, name)
    if asset is None:
        raise not_found()
    call.subject.object_uid = asset.uid
    sample, missing = None, False
    seeing = await parts.rights.decide(call.caller, "get", "derassets/telemetry", namespace, name)
    if seeing.allowed:
        try:
            sample = await _newest(parts, asset)
        except ProblemError:
            missing = True
    stamp = sample.at.isoformat() if sample is not None else ""
    etag = _etag([asset], f"{stamp} {missing}")
    if if_none_match == etag:
        return Response(status_code=304, headers={"ETag": etag})
    extra = b',"missing":["database"]' if missing else b',"missing":[]'
    if sample is not None:
        extra += b',"newest":' + sample.model_dump_json(by_alias=True).encode()
    return Response(asset.body[:-1] + extra + b"}", media_type=_MEDIA_TYPE, headers={"ETag": etag})


async def _newest(parts: Parts, asset: KnownAsset) -> Sample | None:
    key = AssetKey(asset.namespace, asset.name, asset.uid)
    found = (await parts.database.read(find_newest, [key], parts.now())).get(asset.uid)
    if found is None:
        return None
    return Sample(
        at=found.at,
        age_seconds=round(found.age_seconds, 3),
        received_at=found.received_at,
        values={to_camel(name): value for name, value in found.values.items() if value is not None},
    )


def _list(
    parts: Parts, namespaces: Sequence[str], chosen: Filter, if_none_match: str | None
) -> Response:
    page = choose(parts.kubernetes.assets(namespaces), chosen.wanted, chosen.limit, chosen.after)
    etag = _etag(page.assets, f"{namespaces} {page.next}")
    if if_none_match == etag:
        return Response(status_code=304, headers={"ETag": etag})
    head = AssetList(namespaces=list(namespaces), items=[], next=page.next)
    rest = head.model_dump_json(by_alias=True, exclude={"items"}, exclude_none=True).encode()
    items = b",".join(each.body for each in page.assets)
    return Response(
        rest[:-1] + b',"items":[' + items + b"]}", media_type=_MEDIA_TYPE, headers={"ETag": etag}
    )


def _etag(assets: Sequence[KnownAsset], rest: str) -> str:
    """Return an ETag that differs for each version of the answer."""
    digest = hashlib.sha256(rest.encode())
    for each in assets:
        digest.update(f"{each.uid} {each.resource_version};".encode())
    return f'W/"{digest.hexdigest()[:32]}"'
