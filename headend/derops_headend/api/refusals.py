"""What the API server's refusals mean to a caller of ours. Pure."""

import json
import re
from collections.abc import Mapping
from typing import Any

from derops_headend.api.problems import Fault, ProblemError, Slug

REPEAT_WITH_THE_SAME_KEY = (
    "Kubernetes did not say whether it made the Dispatch: repeat the call with the same "
    "Idempotency-Key; it is made once at most"
)

_RETRY_AFTER_SECONDS = 5
_LONGEST_SENTENCE = 500
_MOST_FAULTS = 50
_OF_NO_FIELD = ("", "<nil>")
"""Causes without a field; the second is that of "some validation rules were not checked"."""

_QUOTED = r'"(?:[^"\\]|\\.)*"'
_ECHO = re.compile(
    rf"^(?:Invalid|Unsupported|Duplicate) value: (?:{_QUOTED}|\{{.*\}}|\[.*\]|[^\s:]+)(?:: |$)",
    re.DOTALL,
)
_ECHO_AT_THE_END = re.compile(rf": {_QUOTED}$", re.DOTALL)
_RULE_FAILED = " evaluating rule: "
"""Stands between the value that CEL could not read and the message of the rule."""

_KIND_OF_REFUSAL = re.compile(
    r"^(?:Invalid value|Unsupported value|Duplicate value|Forbidden|Required value|Too long"
    r"|Too many): "
)
_FIELD_IN_BODY = re.compile(r"^\S+ in body ")
_STRICT = re.compile(rf"(unknown|duplicate) field ({_QUOTED})")
_NAMES = {"spec.assetRef.name": "/asset", "spec.assetRef": "/asset", "metadata.name": "/name"}


def refused(status: int, body: bytes, *, creating: bool = False) -> ProblemError:
    """Return the problem that an answer of the API server is.

    Args:
        status: HTTP status, 400 at least.
        body: The body of the answer; a ``Status`` in JSON, or whatever a proxy before it says.
        creating: Whether it answers a create, which may have been carried out all the same.
    """
    answer = _read(body)
    if status == 400 and "strict decoding error" in _text(answer, "message"):
        return _invalid(_unknown_fields(_text(answer, "message")))
    if status == 422 and any(
        _text(each, "field") == "metadata.uid" for each in _raw_causes(answer)
    ):
        status = 409  # the precondition on the uid does not hold
    if status in (400, 422):
        return _invalid(_causes(answer))
    if status == 429:
        return _too_many_requests(answer)
    problem = _PROBLEMS.get(status)
    if problem is not None:
        slug, detail = problem
        return ProblemError(slug, detail or _sentence(answer))
    return unanswered(creating=creating)


def unanswered(*, creating: bool = False) -> ProblemError:
    """Return the problem of a missing answer of the API server, or one that says nothing."""
    detail = REPEAT_WITH_THE_SAME_KEY if creating else "Kubernetes does not answer as it should"
    return ProblemError(
        Slug.KUBERNETES_UNAVAILABLE, detail, retry_after_seconds=_RETRY_AFTER_SECONDS
    )


_PROBLEMS: dict[int, tuple[Slug, str]] = {
    403: (Slug.FORBIDDEN, ""),
    404: (Slug.NOT_FOUND, "there is no such object, or no such namespace"),
    409: (Slug.CONFLICT, "it exists already, or was changed meanwhile: read it, then try again"),
    410: (Slug.PAGE_EXPIRED, "begin again without the parameter after"),
    413: (Slug.TOO_LARGE, "Kubernetes takes no object of this size"),
}
"""By status. An empty detail stands for Kubernetes' own sentence."""


def pointer(field: str) -> str | None:
    """Return where bodies of the API have a field of a Dispatch; None = they do not have it."""
    if field in _NAMES:
        return _NAMES[field]
    if not field.startswith("spec."):
        return None
    return "/" + re.sub(r"\[(\d+)\]", r".\1", field.removeprefix("spec.")).replace(".", "/")


def _too_many_requests(answer: Mapping[str, Any]) -> ProblemError:
    seconds = _details(answer).get("retryAfterSeconds")
    return ProblemError(
        Slug.TOO_MANY_REQUESTS,
        "Kubernetes takes no more calls at the moment",
        retry_after_seconds=seconds if isinstance(seconds, int) and 0 < seconds < 3600 else 1,
    )


def _invalid(faults: list[Fault]) -> ProblemError:
    detail = "Kubernetes does not take the Dispatch as it is" if faults else "it is not valid"
    return ProblemError(Slug.INVALID, detail, faults=faults)


def _unknown_fields(message: str) -> list[Fault]:
    found = _STRICT.findall(message)[:_MOST_FAULTS]
    return [
        Fault(
            code="UnknownField" if how == "unknown" else "DuplicateField",
            detail="this version of the CRD has no such field: update the CRD"
            if how == "unknown"
            else "it is there twice",
            pointer=pointer(quoted.strip('"')),
        )
        for how, quoted in found
    ]


def _raw_causes(answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    causes = _details(answer).get("causes")
    return [each for each in causes if isinstance(each, dict)] if isinstance(causes, list) else []


def _causes(answer: Mapping[str, Any]) -> list[Fault]:
    return [
        Fault(
            code=_text(each, "reason") or "Invalid",
            detail=_without_echo(_text(each, "message")),
            pointer=pointer(_text(each, "field")),
        )
        for each in _raw_causes(answer)
        if _text(each, "field") not in _OF_NO_FIELD
    ][:_MOST_FAULTS]


def _without_echo(message: str) -> str:
    """Return why a value was refused, without the value, which may be at either end."""
    words = _ECHO.sub("", message)
    if words == message and re.match("(?:Invalid|Unsupported|Duplicate) value: ", message):
        words = ""
    words = _FIELD_IN_BODY.sub("", _KIND_OF_REFUSAL.sub("", words))
    words = _ECHO_AT_THE_END.sub("", words).strip()
    words = words.rpartition(_RULE_FAILED)[2]
    if words in ("", "Required value"):
        return "is required" if message.startswith("Required") else "is not a valid value"
    return words[:_LONGEST_SENTENCE]


def _sentence(answer: Mapping[str, Any]) -> str:
    return _text(answer, "message")[:_LONGEST_SENTENCE] or "Kubernetes does not say why"


def _read(body: bytes) -> Mapping[str, Any]:
    try:
        answer = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return answer if isinstance(answer, dict) else {}


def _details(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    details = answer.get("details")
    return details if isinstance(details, dict) else {}


def _text(answer: Mapping[str, Any], name: str) -> str:
    value = answer.get(name)
    return value if isinstance(value, str) else ""
