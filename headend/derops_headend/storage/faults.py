"""Which fault of the database an error of psycopg shows. Pure."""

import re

import psycopg

from derops.data_path import SharedFault

_UNREACHABLE_STATES = ("08", "57P01", "57P02", "57P03")
"""Connections that broke; a server that starts, stops or recovers."""

_REFUSING_STATES = ("28", "3D000", "3F000", "42501", "42P01", "25006")
"""Password, right, database, schema and tables that are not ours, a standby."""

_FULL_STATES = ("53100",)

# What is said before a session is there has no state, and says "FATAL" in any language of ours.
_FULL = re.compile(r"No space left on device|Disk quota exceeded")
_COMING_OR_GOING = re.compile(
    r"is starting up|is shutting down|in recovery mode|not (?:yet )?accepting connections"
)
_REFUSING = re.compile(
    r"authentication failed|no password supplied|pg_hba\.conf|does not exist|permission denied|"
    r"not permitted to log in|does not support SSL|certificate|private key"
)
_ANSWERED = re.compile(r"\b(?:FATAL|PANIC)\b")


def classify(error: psycopg.Error) -> SharedFault:
    """Return why the database does not store, by what it answered, or that nobody did."""
    state, text = error.sqlstate or "", str(error)
    if state.startswith(_FULL_STATES) or _FULL.search(text):
        return SharedFault.DATABASE_FULL
    if state.startswith(_UNREACHABLE_STATES) or (not state and _COMING_OR_GOING.search(text)):
        return SharedFault.DATABASE_UNREACHABLE
    if state.startswith(_REFUSING_STATES) or (not state and _REFUSING.search(text)):
        return SharedFault.DATABASE_REFUSES
    if not state and isinstance(error, psycopg.OperationalError) and not _ANSWERED.search(text):
        return SharedFault.DATABASE_UNREACHABLE
    return SharedFault.DATABASE_FAILING
