"""What one asset's controller tells, on its way to the gateway and to those who watch the agent."""

from derops.ids import AssetName
from derops.observability import Readiness
from derops.wire.v1 import dispatch_pb2
from derops_agent.link.stream import Stream


class StreamOutlet:
    """Tells the stream that is in use, and the readiness of the process."""

    def __init__(self, name: AssetName, readiness: Readiness) -> None:
        self._readiness, self._ledger_part = readiness, f"ledger of {name}"
        self._stream: Stream | None = None

    def use(self, stream: Stream) -> None:
        """Tell this stream from now on; what was told before, it asks for itself."""
        self._stream = stream

    def report(self, report: dispatch_pb2.DispatchReport) -> None:
        """Send a report."""
        if self._stream is not None:
            self._stream.report(report)

    def note_failsafe(self) -> None:
        """End the stream: one that was only slow is heard again and brings no snapshot."""
        if self._stream is not None:
            self._stream.close("Failsafe")

    def note_overrun(self) -> None:
        """End the stream; the next one begins with a snapshot."""
        if self._stream is not None:
            self._stream.close("Overrun", "more than can be handled")

    def note_ledger(self, problem: str) -> None:
        """Say in the readiness why the ledger takes nothing."""
        if problem:
            why = f"{problem}; nothing is accepted and nothing starts"
            self._readiness.degraded(self._ledger_part, why)
        else:
            self._readiness.found(self._ledger_part)
