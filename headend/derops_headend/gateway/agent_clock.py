"""How far an agent's clock is off, as its heartbeats show it."""

from derops_headend.fleet.telemetry import MAX_TIME_US

MAX_CLOCK_OFFSET_US = 5_000_000
"""An agent whose clock is further off refuses dispatches; its samples are marked."""


class AgentClock:
    """The clock of one agent, seen from here."""

    __slots__ = ("off_us", "offset_milliseconds")

    def __init__(self) -> None:
        self.off_us = 0
        """The most that it was off on this stream; includes the time of a heartbeat on its way."""

        self.offset_milliseconds: int | None = None
        """Our clock less the agent's, if that is too much for a delay on the way; else None."""

    def note(self, agent_sent_us: int, received_us: int) -> None:
        """Note when the agent says that it sent a heartbeat, and when it came."""
        offset_us = received_us - agent_sent_us
        self.off_us = max(self.off_us, min(abs(offset_us), MAX_TIME_US))
        wrong = MAX_CLOCK_OFFSET_US < abs(offset_us) < MAX_TIME_US
        self.offset_milliseconds = offset_us // 1000 if wrong else None
