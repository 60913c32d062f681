"""How fast telemetry is let in, so that dispatch never waits behind it. Pure.

A telemetry message costs the gateway's one thread about 0.1 ms whoever sends it. Agents with a
backlog send as fast as they are given credit, so the pace of credit is the pace of the work. It
rises while the thread turns promptly and falls when it does not, like the windows of TCP.
"""

from dataclasses import dataclass

LATE_SECONDS = 0.004
"""A turn of the loop later than this means that it has more to do than it can."""

LEAST_PER_SECOND = 50.0
MOST_PER_SECOND = 100_000.0
_FALL = 0.8
_RISE = 1.05
_BURST_SECONDS = 0.02
_MEMORY_SECONDS = 0.1


@dataclass(slots=True)
class Pace:
    """A token bucket whose rate follows how late the loop is; seconds are those of the caller."""

    per_second: float = MOST_PER_SECOND
    _tokens: float = MOST_PER_SECOND * _BURST_SECONDS
    _usual: float = 0.0

    def take(self) -> bool:
        """Take the token of one credit, if there is one."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def turn(self, *, seconds: float, late_seconds: float, received: int, waiting: bool) -> None:
        """Adapt after a turn of the loop.

        Args:
            seconds: Since the last turn.
            late_seconds: By how much this turn came later than it was due.
            received: Telemetry messages since the last turn: what the pace really was.
            waiting: Whether somebody waits for credit, so that more could come in.
        """
        real = received / seconds
        self._usual += (real - self._usual) * min(1.0, seconds / _MEMORY_SECONDS)
        if late_seconds > LATE_SECONDS:
            # A turn may be late for another reason, and have received little. Taken for the pace,
            # that would hold back for a second agents that send less than usual.
            real = max(real, self._usual)
            self.per_second = max(LEAST_PER_SECOND, min(self.per_second, real) * _FALL)
        elif waiting:
            self.per_second = min(MOST_PER_SECOND, self.per_second * _RISE)
        most = max(1.0, self.per_second * _BURST_SECONDS)
        self._tokens = min(most, self._tokens + self.per_second * seconds)
