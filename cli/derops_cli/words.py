"""Values as people read them, and foreign text made harmless for a terminal. Pure."""

import unicodedata
from datetime import datetime

from derops.instants import format_instant

LONGEST_TEXT = 1024
"""Characters of one foreign text that are shown; who writes it chooses its length."""

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
_FORBIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def clean(text: object, longest: int = LONGEST_TEXT) -> str:
    """Return a text of somebody else in one line, without what controls a terminal."""
    shown = "".join(
        " " if each in "\t\r\n" else "?" if unicodedata.category(each) in _FORBIDDEN else each
        for each in str(text)[: longest + 1]
    )
    return shown if len(shown) <= longest else f"{shown[: longest - 1]}…"


def duration(seconds: float) -> str:
    """Return a duration in its largest unit, and one below where the first is small."""
    rest = max(0, round(seconds))
    for index, (size, unit) in enumerate(_UNITS):
        if rest >= size:
            count, rest = divmod(rest, size)
            if count < 3 and rest and index + 1 < len(_UNITS):
                below, name = _UNITS[index + 1]
                if rest // below:
                    return f"{count} {unit} {rest // below} {name}"
            return f"{count} {unit}"
    return "0 s"


def instant(moment: datetime) -> str:
    """Return a moment in UTC, to the second."""
    return format_instant(moment, "seconds")
