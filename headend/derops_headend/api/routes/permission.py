"""The question that each route begins with: may the caller?"""

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
        request: Of the call.
        verb: As in RBAC.
        resource: Of the group derops.io, with a subresource after a slash.
        namespace: The tenant; empty = all.
        name: Of the object; empty = any.
        fresh: Believe no earlier answer, as each write does.

    Raises:
        ProblemError: NOT_FOUND, FORBIDDEN, KUBERNETES_UNAVAILABLE.
    """
    note(request, verb, resource, namespace, name)
    parts: Parts = request.app.state.parts
    await parts.rights.require(call_of(request), fresh=fresh)
    return parts


def note(request: Request, verb: str, resource: str, namespace: str = "", name: str = "") -> None:
    """Note what a call is about; whether the caller may is still to be asked."""
    subject = call_of(request).subject
    subject.verb, subject.resource = verb, resource
    subject.namespace, subject.name = namespace, name


async def allow_rows(
    request: Request, verb: str, resource: str, namespace: str, name: str = ""
) -> tuple[Parts, datetime | None]:
    """Do what ``allow`` does where rows of the database are asked for, which outlive a namespace.

    Return with the parts since when the rows are that caller's; None = since ever. Rows know a
    namespace by its name. Whoever has a right in it alone has it in the one of now, and not in
    one that had its name before; whoever has it in all namespaces has it in that one as well.
    """
    parts = await allow(request, verb, resource, namespace, name)
    everywhere = await parts.rights.decide(call_of(request).caller, verb, resource, "")
    return parts, None if everywhere.allowed else await parts.kubernetes.namespace_made_at(
        namespace
    )


def later(first: datetime | None, second: datetime | None) -> datetime | None:
    """Return the later of two bounds; None bounds nothing."""
    return max((each for each in (first, second) if each is not None), default=None)
