"""What people can do when PostgreSQL refuses or fails, in one line."""

import re

import psycopg
from psycopg import errors

_LONGEST = 400
_PRINTS_ROLES = 'run what "derops-headend database roles" prints, as a superuser in that database'
_CHECKS = '"derops-headend database roles --check" says which'

_WRAPPING = re.compile(
    r"^connection (?:failed|is bad): (?:connection to server at .* failed: [A-Z]+: +)?"
)

_ADVICE: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (
            r"password authentication failed|no password supplied",
            "the URL has another password than the role, or there is no such role: correct the "
            f"URL, give the role a password, or {_PRINTS_ROLES}",
        ),
        (r'database "[^"]*" does not exist', "create it, then " + _PRINTS_ROLES),
        (r'role "[^"]*" does not exist', _PRINTS_ROLES),
        (
            r"no pg_hba.conf entry|pg_hba.conf rejects",
            "the server's pg_hba.conf does not admit this role from here, or only with TLS",
        ),
        (r"permission denied for database", _PRINTS_ROLES),
        (
            r"does not support SSL",
            "let the server speak TLS, or change sslmode in the URL",
        ),
        (
            r"certificate|private key",
            "see the files that the URL names, and the name that its server certificate has",
        ),
        (r"resolve host", "is the host in the URL right?"),
    )
)


def explain(error: psycopg.Error) -> str:
    """Return what is wrong, and what to do where we know.

    Args:
        error: The error of a connection that was not made, or of a statement. No message of
            PostgreSQL has the password of a URL in it.
    """
    text = _plain(error)
    advice = _advise(error, text)
    return f"{text[:_LONGEST]}; {advice}" if advice else text[:_LONGEST]


def _plain(error: psycopg.Error) -> str:
    """Return the first line, which says why, and where nobody answered."""
    text = str(error).strip().partition("\n")[0]
    return _WRAPPING.sub("", text).strip() or type(error).__name__


def _advise(error: psycopg.Error, text: str) -> str:
    if isinstance(error, errors.InsufficientPrivilege | errors.InvalidSchemaName):
        return f"a right is missing, {_CHECKS}: {_PRINTS_ROLES}"
    if isinstance(error, errors.ReadOnlySqlTransaction):
        return "this is a standby, or set to read only: name the primary in the URL"
    if isinstance(error, errors.UndefinedTable):
        return "no writer of derops has made its tables here: is it the right database?"
    return next((advice for pattern, advice in _ADVICE if pattern.search(text)), "")
