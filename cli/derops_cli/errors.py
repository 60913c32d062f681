"""What ends a command early; each is one line for the person who typed it."""

from derops.errors import DeropsError


class UsageError(DeropsError):
    """What was asked for does not exist, or makes no sense; exit code 2."""


class CannotLookError(DeropsError):
    """Nothing can be looked at; exit code 4."""
