"""What the parts of a gateway need from its streams. No method of an outlet waits."""

from typing import Protocol

import structlog

from derops.log_fields import asset_fields
from derops.wire.v1 import agent_pb2, control_pb2
from derops_headend.access.certificates import AgentCertificate
from derops_headend.fleet.sessions import Session

_log = structlog.get_logger("agent")


class AgentOutlet(Protocol):
    """An agent's stream."""

    certificate: AgentCertificate
    session: Session
    ledger_id: str
    peer: str

    @property
    def is_alive(self) -> bool:
        """Whether its agent was heard of lately and neither side has ended it."""

    @property
    def device(self) -> control_pb2.DeviceState | None:
        """What its agent last said of the device; None = nothing yet."""

    def send(self, message: agent_pb2.GatewayMessage) -> None:
        """Queue a message."""

    def offer(self, dispatch_uid: str) -> None:
        """Queue a dispatch; it is written in the state that it has by then."""

    def end(self, reason: str, message: str) -> None:
        """Say Bye and end."""

    def end_if_silent(self) -> None:
        """End if nothing was heard for too long."""


class OperatorOutlet(Protocol):
    """The operator's stream."""

    def tell(self, message: control_pb2.ReplicaMessage) -> None:
        """Queue a change; before the stream's snapshot drop it: that is answered with all."""

    def has_room_for_stray(self, report: control_pb2.AgentReport) -> bool:
        """Tell whether a report about a dispatch that is not held may wait to be read."""

    def end(self, reason: str, message: str) -> None:
        """End the stream."""


def logger_of(stream: AgentOutlet) -> structlog.stdlib.BoundLogger:
    """Return a logger with the stream's asset and epoch; made when needed, which is seldom."""
    asset = stream.certificate.asset
    bound: structlog.stdlib.BoundLogger = _log.bind(
        **asset_fields(asset.namespace, asset.name), epoch=stream.session.epoch
    )
    return bound
