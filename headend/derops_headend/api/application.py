"""The routes as one application, and its answer where no route has one."""

from collections.abc import Sequence

from fastapi import APIRouter, Depends, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Scope

from derops.command_line import own_version
from derops_headend.api.answers import INTERNAL, of_http, of_validation, problem_response
from derops_headend.api.description import describe, queries_of
from derops_headend.api.parameters import check_query
from derops_headend.api.placement import Placing
from derops_headend.api.ports import Parts
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.routes import assets, audit, dispatches, history, me, openapi, telemetry

ROUTERS = (
    me.router,
    assets.router,
    dispatches.router,
    history.router,
    telemetry.router,
    audit.router,
    openapi.router,
)
"""All there are, in the order of the description."""

_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")


def make_application(parts: Parts | None, routers: Sequence[APIRouter] = ROUTERS) -> FastAPI:
    """Return the application that lies within ``Outer``; without parts it is only described."""
    app = FastAPI(
        title="derops",
        version=own_version(),
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
    )
    app.state.parts = parts
    if parts is not None:
        app.state.placing = Placing(parts.rights, parts.audit, parts.kubernetes, parts.now)
    for router in routers:
        app.include_router(router, dependencies=[Depends(check_query)])
    app.add_exception_handler(ProblemError, _problem)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _fault)
    app.openapi = lambda: describe(app)  # type: ignore[method-assign]
    app.state.queries = queries_of(app.openapi())
    return app


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101  # registered for nothing else
    return _answer(request, error)


async def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return _answer(request, of_validation(error.errors()))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    problem = of_http(error)
    if problem.slug is Slug.METHOD_NOT_ALLOWED:
        return _answer(request, problem, {"allow": ", ".join(_allowed(request.app, request.scope))})
    return _answer(request, problem)


async def _fault(request: Request, _: Exception) -> Response:
    return _answer(request, INTERNAL)


def _answer(
    request: Request, problem: ProblemError, headers: dict[str, str] | None = None
) -> Response:
    request.state.answer.reason = problem.slug.slug
    subject = request.state.call.subject
    # A call that is refused before its route begins is its tenant's as well.
    subject.namespace = subject.namespace or request.path_params.get("namespace", "")
    return problem_response(problem, request.state.call.request_id, headers)


def _allowed(app: FastAPI, scope: Scope) -> list[str]:
    """Return the methods that a path knows: Starlette names those of its first route alone."""
    asked = {key: scope[key] for key in ("type", "path", "root_path", "headers", "query_string")}
    return [
        method
        for method in _METHODS
        if any(
            route.matches({**asked, "method": method})[0] is Match.FULL
            for route in app.router.routes
        )
    ]
