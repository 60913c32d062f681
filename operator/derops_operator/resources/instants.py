"""Instants as text, the way the Kubernetes API writes them, and as microseconds since 1970."""

from datetime import UTC, datetime, timedelta

from derops import instants
from derops.instants import EPOCH, moment_of

_MICROSECOND = timedelta(microseconds=1)


def parse_instant(text: str) -> int:
    """Return the microseconds of an RFC 3339 text; one without a zone is taken as UTC."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return to_us(moment)


def to_us(moment: datetime) -> int:
    """Return the microseconds of a moment that has a zone."""
    return (moment - EPOCH) // _MICROSECOND


def format_instant(instant_us: int) -> str:
    """Return an instant in UTC with milliseconds."""
    return instants.format_instant(moment_of(instant_us))


def format_second(instant_us: int) -> str:
    """Return an instant in UTC cut to the second, as conditions carry it."""
    return instants.format_instant(moment_of(instant_us), "seconds")


def format_micro(instant_us: int) -> str:
    """Return an instant in UTC with microseconds, as Events carry it."""
    return instants.format_instant(moment_of(instant_us), "microseconds")
