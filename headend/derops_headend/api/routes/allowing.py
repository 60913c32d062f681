"""The question that each route begins with: may the caller?"""

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
