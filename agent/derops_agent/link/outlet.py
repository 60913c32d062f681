"""What controller and outbox of one asset tell, on its way to the stream and the readiness."""

from derops.ids import AssetName
from derops.observability import Readiness
from derops.wire.v1 import dispatch_pb2
from derops_agent.link.reasons import EndReason
from derops_agent.link.stream import Stream


class StreamOutlet:
    """Tells the stream that is in use, and the readiness of the process.

    It is the controller's ``Outlet`` and the outbox's ``OutboxListener``.
    """

    def __init__(self, name: AssetName, readiness: Readiness) -> None:
        self._readiness, self._ledger_part = readiness, f"ledger of {name}"
        self._stream: Stream | None = None

    def use(self, stream: Stream) -> None:
        """Tell this stream from now on; it asks itself for what was told before."""
        self._stream = stream

    def report(self, report: dispatch_pb2.DispatchReport) -> None:
        """Send a report."""
        if self._stream is not None:
            self._stream.report(report)

    def note_failsafe(self) -> None:
        """End the stream: one that was only slow would go on without a new snapshot."""
        if self._stream is not None:
            self._stream.close(EndReason.FAILSAFE)

    def note_overrun(self) -> None:
        """End the stream; the next one begins with a snapshot."""
        if self._stream is not None:
            self._stream.close(EndReason.OVERRUN, "more messages wait than the agent has room for")

    def note_stored(self) -> None:
        """Have the stream send what the outbox has more."""
        if self._stream is not None:
            self._stream.telemetry_stored()

    def note_replaced(self) -> None:
        """End the stream: its Hello named another outbox."""
        if self._stream is not None:
            self._stream.close(EndReason.OUTBOX_REPLACED)

    def note_ledger(self, problem: str) -> None:
        """Say in the readiness why the ledger takes nothing."""
        if problem:
            why = f"{problem}; nothing is accepted and nothing starts"
            self._readiness.degraded(self._ledger_part, why)
        else:
            self._readiness.found(self._ledger_part)
