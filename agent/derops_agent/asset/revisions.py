"""How far an asset has come in the desired states that gateways sent."""

import structlog

from derops.revisions import is_too_far_ahead, seconds_ahead
from derops.wire.v1 import agent_pb2
from derops_agent import metrics
from derops_agent.clock import Clock

_MAX_COUNTER = 2**63 - 1  # what a ledger can hold


def order_of(revision: agent_pb2.Revision) -> tuple[int, int, int]:
    """Return what is greater for a newer revision."""
    return revision.era, revision.operator_start_ms, revision.counter


def may_be_kept(revision: agent_pb2.Revision, now_us: int) -> bool:
    """Tell whether a revision may be remembered as the newest.

    One from the future would have all that come later taken for old. It is obeyed all the same: an
    agent whose clock is years slow has to work.
    """
    ahead = is_too_far_ahead(
        era=revision.era, operator_start_ms=revision.operator_start_ms, now_us=now_us
    )
    return not ahead and revision.counter <= _MAX_COUNTER


class Revisions:
    """The newest revision that was heard, and the one that is handled.

    While the ledger takes nothing, what was heard is ahead.
    """

    def __init__(self, stored: agent_pb2.Revision, clock: Clock) -> None:
        self.heard = self.handled = stored
        self._clock = clock
        self._not_kept = (0, 0)
        self._log = structlog.get_logger("controller")

    def note_heard(self, revision: agent_pb2.Revision) -> None:
        """Note a revision that came."""
        if self.keeps(revision):
            self.heard = max(self.heard, revision, key=order_of)

    def is_news(self, revision: agent_pb2.Revision) -> bool:
        """Tell whether a revision is newer than what is handled."""
        return order_of(revision) > order_of(self.handled)

    def keeps(self, revision: agent_pb2.Revision) -> bool:
        """Tell whether a revision may be kept; one that may not is counted and told once."""
        now_us = self._clock.now_us()
        if may_be_kept(revision, now_us):
            return True
        era, start_ms = revision.era, revision.operator_start_ms
        if self._not_kept != (era, start_ms):
            self._not_kept = (era, start_ms)
            metrics.REVISIONS_AHEAD.inc()
            seconds = seconds_ahead(era=era, operator_start_ms=start_ms, now_us=now_us)
            self._log.warning(
                "revision.not_kept", era=era, start_ms=start_ms, ahead_seconds=seconds
            )
        return False
