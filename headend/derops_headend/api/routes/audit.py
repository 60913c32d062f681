"""Routes of the audit, for callers who may see it; their look is recorded as well."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query
from pydantic import AwareDatetime, Field, TypeAdapter
from starlette.requests import Request
from starlette.responses import Response

from derops_headend.api.models import Model
from derops_headend.api.pages import page_after, place_of
from derops_headend.api.parameters import (
    BigInteger,
    Instant,
    Namespace,
    StoredText,
    WholeNumber,
)
from derops_headend.api.routes.permission import allow, allow_rows, later
from derops_headend.storage.audit import MOST_ROWS, AuditFilter, Mark, find_page
from derops_headend.storage.chain import ChainedRecord

router = APIRouter(tags=["audit"])

_PLACE = TypeAdapter(tuple[AwareDatetime, StoredText, BigInteger])
_WORD = r"^[^\x00-\x1f\x7f]*$"


class AuditQuery(Model):
    """Which records; what is not given does not restrict."""

    caller: str | None = Field(
        default=None, max_length=256, pattern=_WORD, description="Name of the caller"
    )
    verb: str | None = Field(default=None, max_length=64, pattern=_WORD)
    resource: str | None = Field(
        default=None, max_length=128, pattern=_WORD, description="Such as `dispatches`"
    )
    name: str | None = Field(
        default=None, max_length=253, pattern=_WORD, description="Of the object"
    )
    request_id: str | None = Field(
        default=None, max_length=64, pattern=_WORD, description="`X-Request-Id` of an answer"
    )
    since: Instant | None = Field(default=None, description="Only records from this instant on")
    until: Instant | None = Field(default=None, description="Only records before this instant")
    limit: WholeNumber = Field(default=100, ge=1, le=MOST_ROWS)
    after: str = Field(
        default="",
        max_length=2000,
        pattern=r"^[A-Za-z0-9_-]*$",
        description="`next` of the page before.",
    )


class AuditItem(Model):
    """A record, and the hash that the next record of its chain has as `prev`."""

    hash: str = Field(description="SHA-256 of the record, byte for byte as it is here")
    record: dict[str, Any] = Field(
        description="What was called, by whom, and what was answered: see the page on the audit"
    )


class AuditPage(Model):
    """Records, the newest first."""

    items: list[AuditItem]
    next: str | None = Field(description="Where the next page begins: `after`; null = nowhere")


@router.get(
    "/v1/namespaces/{namespace}/audit",
    operation_id="listAuditOfNamespace",
    summary="Who did what in a namespace",
    response_model=AuditPage,
)
async def list_audit_of_namespace(
    request: Request, namespace: Namespace, query: Annotated[AuditQuery, Query()]
) -> Response:
    """Return records of calls about a namespace; the right is `list audits` there."""
    return await _answer(request, namespace, query)


@router.get(
    "/v1/audit",
    operation_id="listAudit",
    summary="Who did what",
    response_model=AuditPage,
)
async def list_audit(request: Request, query: Annotated[AuditQuery, Query()]) -> Response:
    """Return records of all calls, also of those about no namespace, and of refused strangers.

    The right is `list audits` in all namespaces.
    """
    return await _answer(request, None, query)


async def _answer(request: Request, namespace: str | None, query: AuditQuery) -> Response:
    since = None
    if namespace is None:
        parts = await allow(request, "list", "audits")
    else:
        parts, since = await allow_rows(request, "list", "audits", namespace)
    wanted = AuditFilter(
        namespace=namespace,
        caller=query.caller,
        verb=query.verb,
        resource=query.resource,
        name=query.name,
        request_id=query.request_id,
        since=later(query.since, since),
        until=query.until,
    )
    after = Mark(*place_of(query.after, _PLACE)) if query.after else None
    page = await parts.database.read(find_page, wanted, after=after, limit=query.limit)
    following = page_after(page.end.at.isoformat(), *page.end[1:]) if page.end else None
    items = ",".join(
        f'{{"hash":{json.dumps(each.hash)},"record":{_json(each)}}}' for each in page.records
    )
    return Response(
        f'{{"items":[{items}],"next":{json.dumps(following)}}}', media_type="application/json"
    )


def _json(record: ChainedRecord) -> str:
    """Return a record as it was written; if somebody made it unreadable, its beginning."""
    try:
        if isinstance(json.loads(record.body), dict):
            return record.body
    except (ValueError, RecursionError):
        pass
    return json.dumps({"chain": record.chain, "seq": record.seq, "unreadable": record.body[:1000]})
