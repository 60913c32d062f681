"""Parameters of requests, and the choice of the representation that a client takes."""

import re
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import Path
from pydantic import BeforeValidator, Field, WithJsonSchema
from pydantic_core import PydanticCustomError
from starlette.requests import Request

from derops_headend.api.models import NAME_PATTERN
from derops_headend.api.problems import ProblemError, Slug, invalid

_INSTANT = re.compile(r"(?:19[7-9]|20\d|21\d)\d-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?Z", re.ASCII)
_MEDIA_RANGE = re.compile(
    r"\s*([a-z*]+/[a-z0-9.+*-]+)\s*(?:;.*?\bq=([01](?:\.\d{0,3})?))?", re.ASCII
)


def _parse_instant(text: object) -> object:
    if isinstance(text, datetime):
        return text
    try:
        if not isinstance(text, str) or not _INSTANT.fullmatch(text):
            raise ValueError
        return datetime.fromisoformat(text)
    except ValueError:
        raise PydanticCustomError(
            "instant", "is no time in UTC from 1970 to 2199 such as 2026-11-30T14:05:00Z"
        ) from None


def _parse_whole_number(text: object) -> object:
    if isinstance(text, str) and not re.fullmatch(r"[0-9]{1,9}", text, re.ASCII):
        raise PydanticCustomError("whole_number", "is no whole number of at most nine digits")
    return int(text) if isinstance(text, str) else text


Instant = Annotated[
    datetime,
    BeforeValidator(_parse_instant),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]
"""RFC 3339, in UTC with a Z: a plus sign in a URL would be a space."""

WholeNumber = Annotated[int, BeforeValidator(_parse_whole_number)]

Namespace = Annotated[str, Path(description="The tenant", max_length=63, pattern=NAME_PATTERN)]
AssetName = Annotated[str, Path(description="The DERAsset", max_length=63, pattern=NAME_PATTERN)]
DispatchName = Annotated[str, Path(description="The Dispatch", max_length=63, pattern=NAME_PATTERN)]

StoredText = Annotated[str, Field(pattern=r"^[^\x00]*$")]
"""Text that PostgreSQL can store; the same holds for the numbers below."""
Natural = Annotated[int, Field(ge=0, lt=2**64)]
BigInteger = Annotated[int, Field(ge=0, lt=2**63)]
Integer = Annotated[int, Field(ge=0, lt=2**31)]


async def check_query(request: Request) -> None:
    """Check that the operation knows each parameter, and that only lists are given several times.

    A misspelt ``dryRun`` that is ignored in silence would make an order of what was to be tried.

    Raises:
        ProblemError: INVALID.
    """
    known = request.app.state.queries[request.method, request.scope["route"].path]
    for name in request.query_params:
        if name not in known:
            may = ", ".join(known) or "nothing"
            raise invalid("query", "unknown", f"may have {may} and nothing else")
        if not known[name] and len(request.query_params.getlist(name)) > 1:
            raise invalid(name, "repeated", "is given more than once")


def choose_media(request: Request, offered: Sequence[str]) -> str:
    """Return the representation that a client likes best; the first of those it likes equally.

    Raises:
        ProblemError: NOT_ACCEPTABLE.
    """
    accept = ",".join(request.headers.getlist("accept")).lower()
    if not accept.strip():
        return offered[0]
    liked = [_liking(media, accept.split(",")) for media in offered]
    if not max(liked):
        raise ProblemError(
            Slug.NOT_ACCEPTABLE, f"There is only {' and '.join(offered)}: see the header Accept"
        )
    return offered[liked.index(max(liked))]


def _liking(media: str, ranges: Sequence[str]) -> float:
    """Return the quality of a media type: that of the most specific range which names it."""
    kind = media.partition("/")[0]
    wanted = {"*/*": 1, f"{kind}/*": 2, media: 3}
    found = (0, 0.0)
    for each in ranges:
        match = _MEDIA_RANGE.match(each)
        if match and match[1] in wanted:
            found = max(found, (wanted[match[1]], float(match[2] or 1)))
    return found[1]
