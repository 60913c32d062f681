"""Answers to calls that failed: application/problem+json, with nothing of the input."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response

from derops_headend.api.problems import MEDIA_TYPE, TYPE_PREFIX, Fault, ProblemError, Slug

MOST_FAULTS = 20
"""The most faults that are told of one request."""

_PLAIN_KEY = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_OF_STATUS = {each.status: each for each in reversed(Slug)}


def problem_body(problem: ProblemError, request_id: str) -> bytes:
    """Return a problem as JSON."""
    slug = problem.slug
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + slug.slug,
        "title": slug.title,
        "status": slug.status,
        "detail": problem.detail,
        "instance": f"urn:uuid:{request_id}",
    }
    if problem.faults:
        body["errors"] = [_fault(each) for each in problem.faults[:MOST_FAULTS]]
    return json.dumps(body).encode()


def problem_response(
    problem: ProblemError, request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the answer that a problem is."""
    extra = dict(headers or {})
    if problem.retry_after_seconds is not None:
        extra["retry-after"] = str(problem.retry_after_seconds)
    if problem.slug is Slug.UNAUTHENTICATED:
        is_shown = all(each.code != "missing" for each in problem.faults)
        error = ', error="invalid_token"' if is_shown else ""
        extra["www-authenticate"] = f'Bearer realm="derops"{error}'
    return Response(
        problem_body(problem, request_id), problem.slug.status, extra, media_type=MEDIA_TYPE
    )


def of_validation(errors: Sequence[Any]) -> ProblemError:
    """Return the problem for the errors of pydantic; each has type, loc and msg."""
    faults = list(dict.fromkeys(_of_error(each) for each in errors[:MOST_FAULTS]))
    return ProblemError(Slug.INVALID, "The request is not as it must be: see errors", faults=faults)


def of_http(error: HTTPException) -> ProblemError:
    """Return the problem for a request that the framework refused."""
    slug = _OF_STATUS.get(error.status_code, Slug.BAD_REQUEST)
    details = {
        Slug.NOT_FOUND: "There is no such path",
        Slug.METHOD_NOT_ALLOWED: "This path does not know the method: see the header Allow",
    }
    return ProblemError(slug, details.get(slug, slug.title))


INTERNAL = ProblemError(
    Slug.INTERNAL,
    "The API met a fault of its own: give the id of this request to whoever runs the API",
)


def _fault(fault: Fault) -> dict[str, str]:
    known = {"pointer": fault.pointer, "parameter": fault.parameter}
    told = {key: value for key, value in known.items() if value is not None}
    return {**told, "code": fault.code, "detail": fault.detail}


def _of_error(error: Any) -> Fault:
    where, *path = error["loc"]
    code, detail = str(error["type"]), str(error["msg"])
    if where != "body":
        name = str(path[0]) if path else ""
        known = name if _PLAIN_KEY.fullmatch(name) else str(where)
        return Fault(parameter=known, code=code, detail=detail)
    if code == "json_invalid":
        return Fault(pointer="", code=code, detail="is no JSON")
    return Fault(pointer=_pointer(path), code=code, detail=detail)


def _pointer(path: Sequence[object]) -> str:
    """Return a pointer into the body, up to a key that only the client knows."""
    found = ""
    for part in path:
        if isinstance(part, str) and not _PLAIN_KEY.fullmatch(part):
            break
        found += f"/{part}"
    return found
