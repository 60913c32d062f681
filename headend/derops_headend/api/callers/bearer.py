"""The one way to show a credential: exactly one header Authorization, of exactly one form. Pure."""

import re
from collections.abc import Iterable

from derops_headend.api.problems import Fault, ProblemError, Slug

_FORM = re.compile(rb"[Bb]earer ([A-Za-z0-9_\-.]{1,8192})")


def bearer_token(headers: Iterable[tuple[bytes, bytes]]) -> str | None:
    """Return the token of a request; None = there is none that could be one.

    Args:
        headers: Names in lower case, as ASGI has them.

    Raises:
        ProblemError: BAD_REQUEST: there is a cookie as well, so who calls is open.
    """
    found, cookies = [], False
    for name, value in headers:
        if name == b"authorization":
            found.append(value)
        cookies = cookies or name == b"cookie"
    form = _FORM.fullmatch(found[0]) if len(found) == 1 else None
    if form is None:
        return None
    if cookies:
        raise ProblemError(
            Slug.BAD_REQUEST, "There is a cookie beside the header Authorization: send no cookie"
        )
    return form[1].decode("ascii")


def unauthenticated(
    code: str = "missing", detail: str = "is required once, as: Bearer TOKEN"
) -> ProblemError:
    """Return the problem that every stranger is answered with, whatever they asked for.

    Args:
        code: What is wrong with the credential, for programs and for counting.
        detail: The same for people, by nothing but what the token itself shows to its holder.
    """
    return ProblemError(
        Slug.UNAUTHENTICATED,
        "Show one valid token in one header: Authorization: Bearer TOKEN",
        faults=[Fault(parameter="Authorization", code=code, detail=detail)],
    )


def invalid_token() -> ProblemError:
    """Return the problem for a token of which no more can be told, such as one that is no JWT."""
    return unauthenticated("invalid", "is nobody's here: not issued for this, or withdrawn")
