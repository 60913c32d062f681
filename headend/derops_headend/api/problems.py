"""Problems by RFC 9457: answers to calls that fail, each with a page in the documentation."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from derops.errors import DeropsError

TYPE_PREFIX = "https://derops.io/problems/"
MEDIA_TYPE = "application/problem+json"


class Slug(Enum):
    """Each kind of problem: the end of its type, its HTTP status, and its title."""

    def __init__(self, slug: str, status: int, title: str) -> None:
        self.slug = slug
        self.status = status
        self.title = title

    BAD_REQUEST = ("bad-request", 400, "The request cannot be read")
    UNAUTHENTICATED = ("unauthenticated", 401, "No valid credential")
    FORBIDDEN = ("forbidden", 403, "Not allowed")
    NOT_FOUND = ("not-found", 404, "Not found")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "Not possible here")
    NOT_ACCEPTABLE = ("not-acceptable", 406, "No such representation")
    CONFLICT = ("conflict", 409, "Changed meanwhile, or there already")
    KEY_REUSED = ("idempotency-key-reused", 409, "The key was used for another request")
    KEY_EXPIRED = ("idempotency-key-expired", 409, "What the key made is no longer there")
    PAGE_EXPIRED = ("page-expired", 410, "The next page is no longer there")
    TOO_LARGE = ("too-large", 413, "Too large")
    UNSUPPORTED_MEDIA_TYPE = ("unsupported-media-type", 415, "Another media type is expected")
    INVALID = ("invalid", 422, "Something in the request is not as it must be")
    TOO_MANY_REQUESTS = ("too-many-requests", 429, "Too many requests")
    INTERNAL = ("internal", 500, "A fault of the API itself")
    KUBERNETES_UNAVAILABLE = ("kubernetes-unavailable", 503, "Kubernetes does not answer")
    DATABASE_UNAVAILABLE = ("database-unavailable", 503, "The database does not answer")
    AUDIT_UNAVAILABLE = ("audit-unavailable", 503, "The audit takes no record")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with a request; it never has the value that was sent."""

    code: str
    """A CamelCase or snake_case word for programs."""

    detail: str
    """For people: what is wrong, the limit with its unit, what to do."""

    pointer: str | None = None
    """Where in the body (RFC 6901), such as ``/setpoint/maxLoadWatts``."""

    parameter: str | None = None
    """Or the parameter or header, by name."""


class ProblemError(DeropsError):
    """A call is not answered as asked; the outer layer answers with this problem."""

    def __init__(
        self,
        slug: Slug,
        detail: str,
        *,
        faults: Sequence[Fault] = (),
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(f"{slug.slug}: {detail}")
        self.slug = slug
        self.detail = detail
        self.faults = tuple(faults)
        self.retry_after_seconds = retry_after_seconds


def invalid(parameter: str, code: str, detail: str) -> ProblemError:
    """Return the problem of a parameter that is not as it must be."""
    fault = Fault(parameter=parameter, code=code, detail=detail)
    return ProblemError(
        Slug.INVALID, "The request is not as it must be: see errors", faults=[fault]
    )


def not_found() -> ProblemError:
    """Return the problem of an object that is not there, or that the caller may not see."""
    return ProblemError(
        Slug.NOT_FOUND,
        "There is no such object, or you may not see it: GET /v1/me/rights says what you may",
    )
