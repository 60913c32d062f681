"""The place where a page of a list ended; callers give it back to get the next page. Pure."""

import base64
import json
from typing import TypeVar

from pydantic import TypeAdapter

from derops_headend.api.problems import ProblemError, invalid

T = TypeVar("T")


def page_after(*place: object) -> str:
    """Return the place of the last row of a page, for ``after``."""
    text = json.dumps([str(each) for each in place])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def place_of(after: str, kind: TypeAdapter[T]) -> T:
    """Return the place that ``page_after`` was given: a tuple of this kind.

    Raises:
        ProblemError: INVALID: ``page_after`` did not make it.
    """
    try:
        place = json.loads(base64.urlsafe_b64decode(after + "=" * (-len(after) % 4)))
        return kind.validate_python(place)
    except (ValueError, RecursionError):
        raise no_page() from None


def no_page() -> ProblemError:
    """Return the problem of an ``after`` that was made up."""
    return invalid("after", "page", "is not what `next` of an answer was: begin again without it")
