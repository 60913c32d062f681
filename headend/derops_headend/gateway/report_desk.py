"""Reports on their way through the gateway: heard, logged, acknowledged, and the newest kept."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import structlog

from derops.log_fields import dispatch_fields, read_request_id
from derops.rates import Rates
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2, log_pb2
from derops_headend.fleet.desired import DesiredState
from derops_headend.fleet.shares import OVERHEAD_BYTES, Shares
from derops_headend.fleet.telemetry import Violation
from derops_headend.gateway import metrics
from derops_headend.gateway.current_operator import CurrentOperator
from derops_headend.gateway.log_appender import LogAppender
from derops_headend.gateway.outlets import AgentOutlet

_log = structlog.get_logger("reports")

_KIB, _MIB = 1024, 1024**2

REPORTS_BYTES, REPORTS_OF_ONE, REPORTS_SURE = 64 * _MIB, 8 * _MIB, 16 * _KIB
"""Bytes of the newest report of each held dispatch: of all assets, of one (a month of quarters of
an hour), and of each in any case."""

UNHELD_REPORTS = 1000
"""Reports of one asset on dispatches that are not held here: so many at once, and as many a day.

Such a report may be the late truth about a settled dispatch. If it is invented, it costs a row in
the history of its own asset."""


class ReportDesk:
    """Reports of agents: those that are not durable yet, and the newest of each held dispatch.

    Args:
        desired: The state that is served, which says what is held.
        operator: Is told of reports.
        journal: The way into the event log.
        now_us: The wall clock.
    """

    def __init__(
        self,
        desired: DesiredState,
        operator: CurrentOperator,
        journal: LogAppender,
        now_us: Callable[[], int],
    ) -> None:
        self._desired, self._operator = desired, operator
        self._journal, self._now_us = journal, now_us
        self.held = Shares(total=REPORTS_BYTES, most=REPORTS_OF_ONE, sure=REPORTS_SURE)
        self._newest: dict[str, control_pb2.AgentReport] = {}
        self._undurable: Counter[str] = Counter()
        """How many reports of a dispatch were heard and are not durable; none = no entry."""

        self._unheld = Rates(per_second=UNHELD_REPORTS / 86_400, burst=UNHELD_REPORTS)

    def may_log(self, asset_uid: str, dispatch_uid: str) -> bool:
        """Tell whether a report goes into the log; on dispatches not held here only some do."""
        held = self._desired.dispatch(dispatch_uid) is not None
        return held or self._unheld.admit(asset_uid, self._now_us() / SECOND_US) is not None

    def has_room(self, report: control_pb2.AgentReport) -> bool:
        """Tell whether there is room for a report; without room, its agent keeps it."""
        uid = report.report.dispatch_uid
        if self._desired.dispatch(uid) is None:
            return self._operator.has_room_for_stray(report)
        more = _weight(report) - _weight(self._newest.get(uid))
        return self.held.has_room(report.asset_uid, more)

    def take(
        self, stream: AgentOutlet, asset: dispatch_pb2.AssetId, report: control_pb2.AgentReport
    ) -> Violation | None:
        """Hear a report and put it into the log, which acknowledges it.

        Args:
            stream: The stream that brought it.
            asset: The asset in whose history it goes.
            report: A report for which there is room.

        Returns:
            The rule that ends the stream, if the stream outruns the log.
        """
        body = report.report.SerializeToString()
        violation = self._journal.check_room(stream, body)
        if violation is not None:
            return violation
        # The report itself would stay in memory beside its bytes until they are durable.
        known = dispatch_pb2.DispatchReport(
            dispatch_uid=report.report.dispatch_uid, sequence=report.report.sequence
        )
        # As it is now: it may be settled before its report is durable.
        held = self._desired.dispatch(report.report.dispatch_uid)
        newest = self._newest.get(report.report.dispatch_uid)
        if newest is None or newest.report.phase != report.report.phase:
            known.phase, known.reason = report.report.phase, report.report.reason
        self.hear(report)  # first: the operator waits for it, the log does not
        self._journal.bring(
            stream,
            log_pb2.AGENT_REPORT,
            asset,
            body,
            partial(self._note_logged, stream, known, held),
        )
        return None

    def hear(self, report: control_pb2.AgentReport) -> None:
        """Take a report that is on its way into the log: keep the newest, tell the operator.

        The agent keeps it and says it again until it is acknowledged, so it cannot get lost.
        """
        uid, new = report.report.dispatch_uid, report.report
        told = control_pb2.ReplicaMessage(report=report)
        self._undurable[uid] += 1
        if self._desired.dispatch(uid) is not None:
            old = self._newest[uid].report if uid in self._newest else new
            if old.ledger_id == new.ledger_id and old.sequence > new.sequence:
                return
            self._keep(uid, told.report)  # a part of it: one copy waits and is kept
        self._operator.tell(told)

    def acknowledge(self, stream: AgentOutlet, report: dispatch_pb2.DispatchReport) -> None:
        """Acknowledge a durable report; if its dispatch is settled, let the agent forget it."""
        metrics.REPORTS.inc()
        self._forget_undurable(report.dispatch_uid)
        _send_ack(stream, report)
        if self._desired.dispatch(report.dispatch_uid) is None:
            self.settle(stream, report.dispatch_uid)

    def let_go(self, stream: AgentOutlet, report: dispatch_pb2.DispatchReport) -> None:
        """Have an agent forget a report that is not logged, and its dispatch."""
        _send_ack(stream, report)
        self.settle(stream, report.dispatch_uid)

    def settle(self, stream: AgentOutlet, dispatch_uid: str) -> None:
        """Let the agent forget a dispatch, once all that it said of it is durable."""
        if dispatch_uid not in self._undurable:
            settled = agent_pb2.Settled(dispatch_uid=dispatch_uid)
            stream.send(agent_pb2.GatewayMessage(settled=settled))

    def tell(self, dispatch_uid: str) -> None:
        """Tell the operator the newest report of a dispatch again, where there is one."""
        if dispatch_uid in self._newest:
            self._operator.tell(control_pb2.ReplicaMessage(report=self._newest[dispatch_uid]))

    def forget(self, dispatch_uid: str) -> None:
        """Drop the report of a dispatch that is no longer held."""
        self._keep(dispatch_uid, None)

    def everything(self) -> Iterator[control_pb2.ReplicaMessage]:
        """Yield the newest report of each dispatch, as of its turn."""
        for uid in list(self._newest):
            report = self._newest.get(uid)
            if report is not None:
                yield control_pb2.ReplicaMessage(report=report)

    def _note_logged(
        self,
        stream: AgentOutlet,
        report: dispatch_pb2.DispatchReport,
        held: dispatch_pb2.Dispatch | None,
        error: BaseException | None,
    ) -> None:
        if error is None:
            if report.phase:
                _say_taken(stream, report, held)
            self.acknowledge(stream, report)
        else:
            self._forget_undurable(report.dispatch_uid)

    def _forget_undurable(self, dispatch_uid: str) -> None:
        self._undurable[dispatch_uid] -= 1
        if not self._undurable[dispatch_uid]:
            del self._undurable[dispatch_uid]

    def _keep(self, dispatch_uid: str, report: control_pb2.AgentReport | None) -> None:
        old = self._newest.pop(dispatch_uid, None)
        if old is not None:
            self.held.add(old.asset_uid, -_weight(old))
        if report is not None:
            self.held.add(report.asset_uid, _weight(report))
            self._newest[dispatch_uid] = report


def _say_taken(
    stream: AgentOutlet, report: dispatch_pb2.DispatchReport, held: dispatch_pb2.Dispatch | None
) -> None:
    """Tell of a report that says another phase than the one before, and is durable."""
    asset = stream.certificate.asset
    fields = dispatch_fields(
        namespace=asset.namespace,
        asset=asset.name,
        dispatch=held.name if held is not None else "",
        uid=report.dispatch_uid,
        request_id=read_request_id(held.request_id) if held is not None else "",
    )
    _log.info("report.taken", **fields, phase=report.phase, reason=report.reason)


def _send_ack(stream: AgentOutlet, report: dispatch_pb2.DispatchReport) -> None:
    ack = agent_pb2.ReportAck(sequence=report.sequence)
    stream.send(agent_pb2.GatewayMessage(report_ack=ack))


def _weight(report: control_pb2.AgentReport | None) -> int:
    return report.ByteSize() + OVERHEAD_BYTES if report is not None else 0
