"""Which fault of the database an error of psycopg shows. Pure."""

import re

import psycopg

from derops.data_path import SharedFault

# What is said before a session is there has no state, and the words of explanations.py.
_ORDER: tuple[tuple[SharedFault, tuple[str, ...], re.Pattern[str]], ...] = (
    (
        SharedFault.DATABASE_FULL,
        ("53100",),
        re.compile(r"No space left on device|Disk quota exceeded"),
    ),
    (
        SharedFault.DATABASE_UNREACHABLE,
        ("08", "57P01", "57P02", "57P03"),  # a broken connection; it starts, stops or recovers
        re.compile(
            r"is starting up|is shutting down|in recovery mode|not (?:yet )?accepting connections"
        ),
    ),
    (
        SharedFault.DATABASE_REFUSES,
        # Password, database, schema, right and tables that are not ours, a standby.
        ("28", "3D000", "3F000", "42501", "42P01", "25006"),
        re.compile(
            r"authentication failed|no password supplied|pg_hba\.conf|does not exist|"
            r"permission denied|not permitted to log in|does not support SSL|certificate|"
            r"private key"
        ),
    ),
)
_NO_ROOM = _ORDER[0][2]
_ANSWERED = re.compile(r"\b(?:FATAL|PANIC)\b")


def classify(error: psycopg.Error) -> SharedFault:
    """Return why the database does not store, by what it answered, or that nobody did."""
    state, text = error.sqlstate or "", str(error)
    if _NO_ROOM.search(text):  # whatever failed for that
        return SharedFault.DATABASE_FULL
    for fault, states, words in _ORDER:
        if state.startswith(states) if state else words.search(text):
            return fault
    unanswered = isinstance(error, psycopg.OperationalError) and not _ANSWERED.search(text)
    return (
        SharedFault.DATABASE_UNREACHABLE
        if unanswered and not state
        else SharedFault.DATABASE_FAILING
    )
