"""Calls and records as the API makes them."""

import itertools
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from derops_headend.api.call import Call, Subject
from derops_headend.api.caller import Caller, CallerKind

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)
ANNA = "oidc:anna"
_numbers = itertools.count(1)


def make_call(
    caller: str = ANNA,
    *,
    at: datetime = NOW,
    method: str = "GET",
    path: str = "/v1/namespaces/pilot-north/assets/b1",
    groups: Sequence[str] = ("traders",),
    user_agent: str = "curl/8",
    **subject: Any,
) -> Call:
    facts = {"namespace": "pilot-north", "verb": "get", "resource": "derassets", "name": "b1"}
    return Call(
        request_id=str(uuid.UUID(int=next(_numbers))),
        received_at=at,
        caller=Caller(
            kind=CallerKind.KUBERNETES, name=caller, groups=tuple(groups), token_id="token-1"
        ),
        method=method,
        path=path,
        source="192.0.2.7",
        user_agent=user_agent,
        subject=Subject(**(facts | {"decision": "allow", "rule": "RBAC: by a binding"} | subject)),
    )


def make_create(key: str = "", caller: str = ANNA, **subject: Any) -> Call:
    """Return the call of a Dispatch's creation, with the hash of an Idempotency-Key."""
    facts = {
        "verb": "create",
        "resource": "dispatches",
        "name": "d-1",
        "idempotency_key_sha256": key,
        "body_sha256": "b" * 64,
        "change": {"setpoint": {"mode": "CeaseToEnergize"}, "startTime": "2026-11-30T12:00:05Z"},
    }
    path = "/v1/namespaces/pilot-north/dispatches"
    return make_call(caller, method="POST", path=path, **(facts | subject))
