"""The route of the API's own description."""

from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse

from derops_headend.api.call import call_of

router = APIRouter(tags=["description"])


@router.get(
    "/v1/openapi.json",
    operation_id="getDescription",
    summary="This description",
    response_model=dict[str, Any],
)
async def get_description(request: Request) -> JSONResponse:
    """Return the OpenAPI 3.1 document of this version."""
    subject = call_of(request).subject
    subject.verb, subject.resource = "get", "openapi"
    return JSONResponse(request.app.openapi())
