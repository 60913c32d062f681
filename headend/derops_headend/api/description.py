"""The API's description by OpenAPI 3.1: made of the routes, the same for each caller."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from derops_headend.api.problems import MEDIA_TYPE, Slug

ALWAYS = (400, 401, 404, 405, 413, 415, 422, 429, 500, 503)
"""Answers that each call may have beside those of its route."""

Queries = Mapping[tuple[str, str], Mapping[str, bool]]
"""By method and path: names of parameters, and whether each may be given several times."""

_DESCRIPTION = """\
Reads and orders for what is outside Kubernetes. Rights are those of Kubernetes' RBAC, each call is
recorded, and each error is an `application/problem+json` whose `type` is documented.
Positive power flows into the grid. Times are RFC 3339, UTC.
"""

_FAULT = {
    "type": "object",
    "properties": {
        "pointer": {"type": "string", "description": "Where in the body (RFC 6901)"},
        "parameter": {"type": "string", "description": "Or the parameter or header"},
        "code": {"type": "string"},
        "detail": {"type": "string"},
    },
    "required": ["code", "detail"],
    "additionalProperties": False,
}
_PROBLEM = {
    "type": "object",
    "description": "RFC 9457",
    "properties": {
        "type": {"type": "string", "format": "uri"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "instance": {"type": "string", "format": "uri", "description": "Names the request"},
        "errors": {"type": "array", "items": {"$ref": "#/components/schemas/Fault"}},
    },
    "required": ["type", "title", "status", "detail", "instance"],
    "additionalProperties": False,
}
_REQUEST_ID = {
    "description": "Names this request, also in the audit",
    "schema": {"type": "string", "format": "uuid"},
}

_HEADER = {"$ref": "#/components/headers/X-Request-Id"}


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the description of an application, made once."""
    if app.openapi_schema is None:
        app.openapi_schema = _make(app)
    return app.openapi_schema


def queries_of(described: Mapping[str, Any]) -> Queries:
    """Return which parameters a query may have, and which of them may be given several times."""
    return {
        (method.upper(), path): {
            each["name"]: _is_list(each["schema"])
            for each in operation.get("parameters", ())
            if each["in"] == "query"
        }
        for path, operations in described["paths"].items()
        for method, operation in operations.items()
    }


def _is_list(schema: Mapping[str, Any]) -> bool:
    return any(each.get("type") == "array" for each in (schema, *schema.get("anyOf", ())))


def _make(app: FastAPI) -> dict[str, Any]:
    described = get_openapi(
        title=app.title,
        version=app.version,
        openapi_version="3.1.0",
        description=_DESCRIPTION,
        routes=app.routes,
    )
    components = described.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas |= {"Fault": _FAULT, "Problem": _PROBLEM}
    components["schemas"] = dict(sorted(schemas.items()))
    components["securitySchemes"] = {
        "token": {
            "type": "http",
            "scheme": "bearer",
            "description": "Of Kubernetes, made for the audience derops-api, or a static one",
        }
    }
    components["headers"] = {"X-Request-Id": _REQUEST_ID}
    described["security"] = [{"token": []}]
    refused: set[int] = set(ALWAYS)
    for path in described["paths"].values():
        for operation in path.values():
            refused |= _complete(operation)
    components["responses"] = {f"Problem{each}": _response(each) for each in sorted(refused)}
    return described


def _complete(operation: dict[str, Any]) -> set[int]:
    """Add what holds for each operation; return all statuses that are no success."""
    operation["security"] = [{"token": []}]
    for parameter in operation.get("parameters", ()):
        parameter["schema"] = _without_null(parameter["schema"])
    answers = operation["responses"]
    refused = {*ALWAYS, *(int(each) for each in answers if each >= "400")}
    for answer in answers.values():
        answer.setdefault("headers", {})["X-Request-Id"] = _HEADER
    for status in sorted(refused):
        answers[str(status)] = {"$ref": f"#/components/responses/Problem{status}"}
    return refused


def _without_null(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a parameter without null: no text of a query or header is one."""
    kinds = [each for each in schema.get("anyOf", ()) if each != {"type": "null"}]
    if len(kinds) != 1:
        return dict(schema)
    return {**{name: value for name, value in schema.items() if name != "anyOf"}, **kinds[0]}


def _response(status: int) -> dict[str, Any]:
    return {
        "description": _titles(status),
        "headers": {"X-Request-Id": _HEADER},
        "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }


def _titles(status: int) -> str:
    return "; ".join(f"{each.title} (`{each.slug}`)" for each in Slug if each.status == status)
