"""The operator's live stream: the newest one, and no other."""

from derops.wire.v1 import control_pb2
from derops_headend.fleet.desired import BadSyncError
from derops_headend.gateway import metrics
from derops_headend.gateway.outlets import OperatorOutlet


class CurrentOperator:
    """The operator's live stream, if there is one."""

    def __init__(self) -> None:
        self._outlet: OperatorOutlet | None = None

    def attach(self, outlet: OperatorOutlet) -> None:
        """Listen to this stream and to no earlier one."""
        if self._outlet is not None and self._outlet is not outlet:
            self._outlet.end("Superseded", "a newer operator stream took over")
        self._outlet = outlet
        metrics.OPERATOR_CONNECTED.set(1)

    def detach(self, outlet: OperatorOutlet) -> None:
        """Forget a stream that ended."""
        if self._outlet is outlet:
            self._outlet = None
            metrics.OPERATOR_CONNECTED.set(0)

    def check(self, outlet: OperatorOutlet) -> None:
        """Check that a stream is the live one.

        Raises:
            BadSyncError: It was superseded.
        """
        if self._outlet is not outlet:
            raise BadSyncError("Superseded", "a newer operator stream took over")

    def tell(self, message: control_pb2.ReplicaMessage) -> None:
        """Queue a change for the operator; without one drop it: the next one is told all anew."""
        if self._outlet is not None:
            self._outlet.tell(message)

    def has_room_for_stray(self, report: control_pb2.AgentReport) -> bool:
        """Tell whether a report about a dispatch that is not held may wait to be read."""
        return self._outlet is None or self._outlet.has_room_for_stray(report)

    def end(self, reason: str, message: str) -> None:
        """End the operator's stream, if there is one."""
        if self._outlet is not None:
            self._outlet.end(reason, message)
