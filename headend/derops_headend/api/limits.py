"""How large one call may be, and how many calls there may be."""

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from starlette.types import Scope

from derops.rates import Rates
from derops_headend.api import metrics
from derops_headend.api.problems import Fault, ProblemError, Slug
from derops_headend.api.shares import may_take

BODY_BYTES = 65_536
HEADER_BYTES = 16_384
"""The most bytes of all headers of a request."""

HEADERS = 100
PATH_BYTES = 1_024
QUERY_BYTES = 4_096

CALLS_AT_ONCE, CALLS_OF_ONE_AT_ONCE = 256, 32
"""The most open calls: of all callers, and of one."""

CALLS_PER_SECOND, CALLS_IN_A_BURST = 200.0, 400.0
"""The most calls of one caller."""

_PATH = re.compile(rb"/[A-Za-z0-9/._-]*")
_JSON = re.compile(rb"application/json(\s*;.*)?", re.IGNORECASE)


def check_head(scope: Scope) -> None:
    """Check what comes before a body, with one look at each part.

    Raises:
        ProblemError: TOO_LARGE: a part is longer than it may be; NOT_FOUND: no path has such
            characters.
    """
    headers = scope["headers"]
    sizes = {
        "headers": (sum(len(name) + len(value) for name, value in headers), HEADER_BYTES),
        "path": (len(scope["raw_path"]), PATH_BYTES),
        "query": (len(scope["query_string"]), QUERY_BYTES),
    }
    for part, (size, most) in sizes.items():
        if size > most:
            raise _too_large(part, f"{size} bytes, at most {most}")
    if len(headers) > HEADERS:
        raise _too_large("headers", f"{len(headers)} headers, at most {HEADERS}")
    if not _PATH.fullmatch(scope["raw_path"]):  # none of ours has a character to be encoded
        raise ProblemError(Slug.NOT_FOUND, "There is no such path")


def has_body(scope: Scope) -> bool:
    """Tell whether a request says that it has a body."""
    said = dict(scope["headers"])
    return b"transfer-encoding" in said or said.get(b"content-length", b"0") != b"0"


def check_length(scope: Scope) -> None:
    """Check the length that a request says its body has.

    Raises:
        ProblemError: TOO_LARGE.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > BODY_BYTES:  # the parser saw that it is one
            raise body_too_large()


def body_too_large() -> ProblemError:
    """Return the problem of a body that is too long."""
    return _too_large("body", f"more than {BODY_BYTES} bytes")


def check_media_type(scope: Scope) -> None:
    """Check that a request says its body is JSON.

    Raises:
        ProblemError: UNSUPPORTED_MEDIA_TYPE.
    """
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    if len(kinds) != 1 or not _JSON.fullmatch(kinds[0]):
        raise ProblemError(
            Slug.UNSUPPORTED_MEDIA_TYPE, "A body must come with Content-Type: application/json"
        )


class Slots:
    """Lets in so many calls at once and so many a second, of each caller and of all."""

    def __init__(self, now_seconds: Callable[[], float] = time.monotonic) -> None:
        self._now_seconds = now_seconds
        self._rates = Rates(per_second=CALLS_PER_SECOND, burst=CALLS_IN_A_BURST)
        self._open: Counter[str] = Counter()

    @contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Hold a place for a call of a caller.

        Raises:
            ProblemError: TOO_MANY_REQUESTS.
        """
        if self._rates.admit(name, self._now_seconds()) is None:
            raise _too_many(f"more than {CALLS_PER_SECOND:.0f} calls a second")
        if self._open[name] >= CALLS_OF_ONE_AT_ONCE:
            raise _too_many(f"more than {CALLS_OF_ONE_AT_ONCE} calls at once")
        if not may_take(self._open[name], CALLS_AT_ONCE - self._open.total()):
            raise _too_many(
                f"all callers together may have {CALLS_AT_ONCE} open, and the places that are left "
                "are for callers with fewer"
            )
        self._open[name] += 1
        metrics.OPEN_CALLS.inc()
        try:
            yield
        finally:
            metrics.OPEN_CALLS.dec()
            self._open[name] -= 1
            if not self._open[name]:
                del self._open[name]


def _too_large(part: str, why: str) -> ProblemError:
    fault = Fault(parameter=part, code="too_large", detail=why)
    return ProblemError(
        Slug.TOO_LARGE, "A part of the request is larger than allowed: see errors", faults=[fault]
    )


def _too_many(why: str) -> ProblemError:
    return ProblemError(Slug.TOO_MANY_REQUESTS, f"Too many requests: {why}", retry_after_seconds=1)
