"""One call from its first byte to its record."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends
from starlette.requests import Request

from derops_headend.api.caller import Caller


@dataclass(slots=True, kw_only=True)
class Subject:
    """What a call is about: the route fills it in, the audit keeps it, in words of audit.k8s.io."""

    namespace: str = ""
    """The tenant; empty = none, or several."""

    verb: str = ""
    resource: str = ""
    """The resource, with a subresource as in RBAC: ``derassets/telemetry``."""

    name: str = ""
    object_uid: str = ""
    decision: str = ""
    """``allow`` or ``forbid``; empty = nothing was decided."""

    rule: str = ""
    """Why, in the authoriser's words."""

    change: dict[str, Any] = field(default_factory=dict)
    """What a write asks for: setpoint, window; JSON."""

    idempotency_key_sha256: str = ""
    """Hex."""

    body_sha256: str = ""
    """Hex."""

    dry_run: bool = False


@dataclass(slots=True, kw_only=True)
class Call:
    """The call that is being answered, as ``request.state.call``."""

    request_id: str
    """A UUID of ours: in the answer's X-Request-Id, in problems, in the audit, on what was made."""

    received_at: datetime
    caller: Caller
    method: str
    path: str
    source: str
    """Address of the client."""

    user_agent: str
    """Cut to 128 characters."""

    subject: Subject = field(default_factory=Subject)
    is_announced: bool = False
    """Whether the audit has an announcement of its change; the audit sets it."""


def call_of(request: Request) -> Call:
    """Return the call that a request is."""
    call: Call = request.state.call
    return call


async def _call_of(request: Request) -> Call:
    return call_of(request)


CallOf = Annotated[Call, Depends(_call_of)]
"""The call of a request. It is async, as FastAPI runs other dependencies in threads."""
