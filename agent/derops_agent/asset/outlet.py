"""Where the agent of one asset tells what others wait for."""

from typing import Protocol

from derops.wire.v1 import dispatch_pb2


class Outlet(Protocol):
    """What the controller tells as it happens; nothing of it blocks or fails."""

    def report(self, report: dispatch_pb2.DispatchReport) -> None:
        """Take a report; it is durable here."""

    def note_failsafe(self) -> None:
        """Note that failsafe is entered: only a new snapshot ends it."""

    def note_overrun(self) -> None:
        """Note that what came has no room any more: only a new snapshot makes up for it."""

    def note_ledger(self, problem: str) -> None:
        """Note why the ledger takes nothing; empty = it does again."""
