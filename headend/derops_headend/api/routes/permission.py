"""The check with which each route begins: may the caller do this?"""

from datetime import datetime

from starlette.requests import Request

from derops_headend.api.call import call_of
from derops_headend.api.ports import Parts


async def allow(
    request: Request,
    verb: str,
    resource: str,
    namespace: str = "",
    name: str = "",
    *,
    fresh: bool = False,
) -> Parts:
    """Note what a call is about, and return the parts if the caller may; see ``Rights.require``.

    Args:
        request: The request of the call.
        verb: A verb of RBAC.
        resource: A resource of the group derops.io, with a subresource after a slash.
        namespace: The tenant; empty = all.
        name: The object's name; empty = any.
        fresh: Believe no earlier answer, as each write does.

    Raises:
        ProblemError: NOT_FOUND, FORBIDDEN, KUBERNETES_UNAVAILABLE.
    """
    note(request, verb, resource, namespace, name)
    parts: Parts = request.app.state.parts
    await parts.rights.require(call_of(request), fresh=fresh)
    return parts


def note(request: Request, verb: str, resource: str, namespace: str = "", name: str = "") -> None:
    """Note what a call is about; the right is checked later."""
    subject = call_of(request).subject
    subject.verb, subject.resource = verb, resource
    subject.namespace, subject.name = namespace, name


async def allow_rows(
    request: Request, verb: str, resource: str, namespace: str, name: str = ""
) -> tuple[Parts, datetime | None]:
    """Do what ``allow`` does, for rows of the database: they outlive a namespace.

    Returns:
        The parts, and the instant from which on the rows are the caller's; None = all are.

    Rows know a namespace by its name. A right in one namespace is a right in the namespace that
    has the name now, and not in one that had it before. A right in all namespaces covers both.
    """
    parts = await allow(request, verb, resource, namespace, name)
    everywhere = await parts.rights.decide(call_of(request).caller, verb, resource, "")
    return parts, None if everywhere.allowed else await parts.kubernetes.namespace_made_at(
        namespace
    )


def later(first: datetime | None, second: datetime | None) -> datetime | None:
    """Return the later of two bounds; None bounds nothing."""
    return max((each for each in (first, second) if each is not None), default=None)
