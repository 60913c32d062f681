"""Routes about the caller: who it is, and what it may do."""

import asyncio
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request

from derops_headend.api.call import CallOf
from derops_headend.api.caller import CallerKind
from derops_headend.api.models import Model
from derops_headend.api.ports import Parts

router = APIRouter(tags=["me"])

ASKED = (
    ("get", "derassets"),
    ("list", "derassets"),
    ("watch", "derassets"),
    ("get", "derassets/telemetry"),
    ("get", "dispatches"),
    ("list", "dispatches"),
    ("watch", "dispatches"),
    ("create", "dispatches"),
    ("patch", "dispatches"),
    ("list", "audits"),
)
"""The rights of the shipped roles, as verb and resource of the group derops.io."""

Namespace = Annotated[
    str,
    Query(
        description="A namespace",
        min_length=1,
        max_length=63,
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    ),
]


class Me(Model):
    """The caller, as Kubernetes names them."""

    kind: CallerKind
    name: str
    groups: list[str]
    token_id: str = Field(description="Names the credential in the audit; empty = it has no id")
    expires_at: datetime | None = Field(description="When the credential expires; null = unknown")


class Right(Model):
    """One thing that may be done, or not."""

    verb: str
    resource: str
    allowed: bool


class RightsOfMe(Model):
    """What the caller may do in a namespace."""

    namespace: str
    rights: list[Right]


@router.get("/v1/me", operation_id="getMe", summary="Who I am")
async def get_me(call: CallOf) -> Me:
    """Return the caller, as the credential names them."""
    call.subject.verb, call.subject.resource = "get", "me"
    caller = call.caller
    return Me(
        kind=caller.kind,
        name=caller.name,
        groups=list(caller.groups),
        token_id=caller.token_id,
        expires_at=caller.expires_at,
    )


@router.get("/v1/me/rights", operation_id="getMyRights", summary="What I may do in a namespace")
async def get_my_rights(request: Request, call: CallOf, namespace: Namespace) -> RightsOfMe:
    """Return the rights of the shipped roles, and whether the caller has them in a namespace.

    The answer does not tell whether the namespace exists.
    """
    parts: Parts = request.app.state.parts
    subject = call.subject
    subject.verb, subject.resource, subject.namespace = "get", "me/rights", namespace
    decisions = await asyncio.gather(
        *(parts.rights.decide(call.caller, verb, resource, namespace) for verb, resource in ASKED)
    )
    return RightsOfMe(
        namespace=namespace,
        rights=[
            Right(verb=verb, resource=resource, allowed=decision.allowed)
            for (verb, resource), decision in zip(ASKED, decisions, strict=True)
        ],
    )
