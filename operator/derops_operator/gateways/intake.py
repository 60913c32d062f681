"""What gateway replicas say: what counts goes into the fleet, and the uids of it are told."""

import time
from collections.abc import Callable

import structlog

from derops.lifecycle import Phase
from derops.log_fields import asset_fields
from derops.rates import Rates
from derops.wire.v1 import control_pb2
from derops_operator import metrics
from derops_operator.gateways.desired import Desired, Subscription
from derops_operator.gateways.replicas import Fleet

MAX_SAID_BYTES = 256 * 1024
"""Of one thing that a replica says; the greatest honest one is a report of 64 KiB."""

STRANGE_LOG_SECONDS = 10.0
"""How often a report that counts for nothing is worth a line, for each reason."""

_MAX_WORD = 256

_log = structlog.get_logger("headend")


class ReplicaIntake:
    """Takes what all replicas say. No method waits."""

    def __init__(
        self,
        desired: Desired,
        fleet: Fleet,
        concerns: Callable[[str], None],
        distrust: Callable[[control_pb2.AgentReport], str | None],
        knows: Callable[[str], bool],
        now_us: Callable[[], int],
    ) -> None:
        """Make it.

        Args:
            desired: What the replicas are to hold.
            fleet: Where what they say goes.
            concerns: Called with the uid of each asset or dispatch that there is news of.
            distrust: Returns why a report does not count, of a closed set, or None.
            knows: Tells whether there is an asset or dispatch of a uid; of others nothing is kept.
            now_us: When something is heard, Unix time in us.
        """
        self._desired = desired
        self._fleet = fleet
        self._concerns = concerns
        self._distrust = distrust
        self._knows = knows
        self._now_us = now_us
        self._strange_lines = Rates(per_second=1 / STRANGE_LOG_SECONDS, burst=1.0)

    def add_replica(self, hello: control_pb2.ReplicaHello, subscription: Subscription) -> None:
        """Take a replica's hello; tell it the epochs that others have seen."""
        # The snapshot may be on its way already: count everything as possibly received.
        version = self._desired.version
        self._fleet.add_replica(hello.replica, hello.state_since_us, version, self._now_us())
        for seen in self._fleet.all_seen():  # also to the only one: its disk may be a new one
            message = control_pb2.OperatorMessage(epoch_seen=seen)
            self._desired.tell(message, to=subscription)

    def take(self, name: str, message: control_pb2.ReplicaMessage) -> None:
        """Take one thing that the replica ``name`` says; batches are taken apart before.

        Raises:
            ValueError: It is greater than anything that a replica has to say.
        """
        kind = message.WhichOneof("kind")
        if message.ByteSize() > MAX_SAID_BYTES:
            raise ValueError(f"{kind} has more than {MAX_SAID_BYTES} bytes")
        if not self._is_of_use(message):
            return
        if kind == "accepted_version":
            self._fleet.note_accepted(name, message.accepted_version, self._now_us())
        elif kind == "session":
            self._take_session(name, message.session)
        elif kind == "device":
            self._fleet.note_device(name, message.device)
            self._concerns(message.device.asset_uid)
        elif kind == "headend":
            self._fleet.headend.note(name, message.headend)
        elif kind == "delivery":
            self._fleet.note_delivery(name, message.delivery)
            self._concerns(message.delivery.dispatch_uid)
        elif kind == "report":
            self._take_report(message.report)

    def _is_of_use(self, message: control_pb2.ReplicaMessage) -> bool:
        """Tell whether what a replica says may be kept; a replica may lie.

        A session, a device or a delivery of an object that does not exist is not kept. Reports are
        judged one by one.
        """
        kind = message.WhichOneof("kind")
        if kind == "session":
            return self._knows(message.session.asset_uid)
        if kind == "device":
            return self._knows(message.device.asset_uid)
        if kind == "delivery":
            return self._knows(message.delivery.dispatch_uid)
        return True

    def _take_session(self, name: str, session: control_pb2.Session) -> None:
        ledger = self._desired.ledger_of(session.asset_uid)
        seen = self._fleet.note_session(name, session, ledger, self._now_us())
        if seen is not None and len(self._fleet.replicas) > 1:
            self._desired.tell(control_pb2.OperatorMessage(epoch_seen=seen))
        self._concerns(session.asset_uid)

    def _take_report(self, message: control_pb2.AgentReport) -> None:
        phase = message.report.phase
        if phase not in set(Phase):
            _log.error(
                "report.not_understood",
                phase=phase[:_MAX_WORD],
                **asset_fields(message.namespace[:_MAX_WORD], message.asset_name[:_MAX_WORD]),
                dispatch_uid=message.report.dispatch_uid[:_MAX_WORD],
            )
            return
        if self._is_strange(message):
            return
        if self._fleet.note_report(message):
            self._concerns(message.report.dispatch_uid)

    def _is_strange(self, message: control_pb2.AgentReport) -> bool:
        """Tell whether a report does not count; count it, and now and then say so."""
        reason = self._distrust(message)
        if reason is None:
            return False
        metrics.STRANGE_REPORTS.labels(reason=reason).inc()
        if self._strange_lines.admit(reason, time.monotonic()) is not None:
            _log.warning(
                "report.strange",
                reason=str(reason),
                **asset_fields(message.namespace[:_MAX_WORD], message.asset_name[:_MAX_WORD]),
                dispatch_uid=message.report.dispatch_uid[:_MAX_WORD],
                asset_uid=message.asset_uid[:_MAX_WORD],
            )
        return True
