"""Memory that many holders share, bounded in bytes. Pure."""

OVERHEAD_BYTES = 2048
"""What a message costs beside its bytes, as an object and in the tables that lead to it."""


class Shares:
    """How many bytes each holder has, and all of them together.

    A holder may have up to ``most``. Once all have ``total``, each may have up to ``sure`` only: a
    holder that floods finds no room, and the others still have some.

    Args:
        total: Bytes from which on only the sure share is given.
        most: Bytes that one holder may have while there is room.
        sure: Bytes that each holder may have, however much the others do.
    """

    def __init__(self, *, total: int, most: int, sure: int) -> None:
        self._total, self._most, self._sure = total, most, sure
        self._of: dict[str, int] = {}
        self.used = 0

    @property
    def is_crowded(self) -> bool:
        """Whether half of the room is taken."""
        return 2 * self.used > self._total

    def has_room(self, holder: str, more: int) -> bool:
        """Tell whether a holder may have so many bytes more."""
        held = self._of.get(holder, 0) + more
        most = self._most if self.used + more <= self._total else self._sure
        return more <= 0 or held <= most

    def add(self, holder: str, more: int) -> None:
        """Note that a holder has more, or fewer, bytes; a holder of none costs none."""
        held = self._of.pop(holder, 0) + more
        if held:
            self._of[holder] = held
        self.used += more

    def take(self, holder: str, more: int) -> bool:
        """Note that a holder has more if there is room for it; tell whether there was."""
        if not self.has_room(holder, more):
            return False
        self.add(holder, more)
        return True
