"""Why an entry of the log cannot become rows, and the bounds of what can."""

from derops.errors import DeropsError

MAX_TIME_US = 4_102_444_800_000_000
"""The year 2100: later times are a broken clock."""

MAX_AHEAD_US = 2 * 86_400_000_000
"""Samples further ahead of our clock are refused: they would need partitions of their own."""

MAX_LATE_US = 400 * 86_400_000_000
"""Samples that are older than this are refused: no outbox keeps any so long."""

MAX_NAME = 256

MAX_CREATOR = 512
"""Characters of who ordered a dispatch; an operator tells no more."""

MAX_UNNOTED_US = 5_000_000
"""How far ahead of ours a clock may be before its samples are flagged."""


class EntryRefusedError(DeropsError):
    """An entry that cannot become rows."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def clean(text: str) -> str:
    """Return text as PostgreSQL can store it."""
    return text.replace("\0", "\ufffd")
