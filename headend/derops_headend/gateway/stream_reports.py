"""The reports of one stream, checked before the desk takes them."""

from collections.abc import Callable

from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_headend.fleet.desired import DesiredState
from derops_headend.fleet.reports import MAX_WORD, Circumstances, impossibility_of, problem_of
from derops_headend.fleet.telemetry import Violation
from derops_headend.gateway import metrics
from derops_headend.gateway.agent_clock import AgentClock
from derops_headend.gateway.deliveries import Deliveries
from derops_headend.gateway.outlets import AgentOutlet, logger_of
from derops_headend.gateway.report_desk import ReportDesk

MAX_REFUSED_REPORTS = 64
"""How many reports may break a rule before the stream is ended."""


class StreamReports:
    """The reports of one stream, and how many of them broke a rule.

    Each call is given the stream, as none is kept here: both are freed at once when it ends.

    Args:
        asset: The asset of the stream.
        clock: How far the agent's clock is off.
        desired: The state that is served.
        deliveries: Tells in whose name the agent may speak.
        desk: Takes reports that break no rule.
        now_us: The wall clock.
    """

    __slots__ = (
        "_asset",
        "_clock",
        "_deliveries",
        "_desired",
        "_desk",
        "_now_us",
        "_refused",
    )

    def __init__(
        self,
        *,
        asset: dispatch_pb2.AssetId,
        clock: AgentClock,
        desired: DesiredState,
        deliveries: Deliveries,
        desk: ReportDesk,
        now_us: Callable[[], int],
    ) -> None:
        self._asset, self._clock = asset, clock
        self._desired, self._deliveries, self._desk = desired, deliveries, desk
        self._now_us = now_us
        self._refused = 0

    def take(self, stream: AgentOutlet, report: dispatch_pb2.DispatchReport) -> Violation | None:
        """Hand a report on or refuse it; return the rule that ends the stream, if it broke one."""
        asset = self._deliveries.owner(self._asset, stream.ledger_id, report.dispatch_uid)
        problem = self._problem_of(stream, report)
        if problem:
            return self._refuse(stream, report, "Malformed", problem)
        if asset is None:
            return self._refuse(stream, report, "AnotherAsset", "the dispatch is another asset's")
        problem = self._impossibility_of(stream, report)
        if problem:
            return self._refuse_impossible(stream, report, problem)
        if not self._desk.may_log(asset.uid, report.dispatch_uid):
            metrics.UNLOGGED_REPORTS.inc()
            self._desk.let_go(stream, report)
            return None
        name = stream.certificate.asset
        received = control_pb2.AgentReport(
            asset_uid=asset.uid,
            received_us=self._now_us(),
            report=report,
            namespace=name.namespace,
            asset_name=name.name,
        )
        if not self._desk.has_room(received):
            self._put_off(stream, report)
            return None
        return self._desk.take(stream, asset, received)

    def _problem_of(self, stream: AgentOutlet, report: dispatch_pb2.DispatchReport) -> str:
        of_ledger = report.ledger_id == stream.ledger_id
        if not of_ledger or not report.dispatch_uid or not report.sequence:
            return "the report lacks its dispatch_uid or sequence, or is of another ledger"
        return problem_of(report)

    def _impossibility_of(self, stream: AgentOutlet, report: dispatch_pb2.DispatchReport) -> str:
        uid, session = report.dispatch_uid, stream.session
        asset = self._desired.asset(session.asset_uid)
        if asset is None:  # removed: this stream is about to end
            return ""
        circumstances = Circumstances(
            received_us=self._now_us(),
            asset=asset,
            capability=session.capability,
            dispatch=self._desired.dispatch(uid),
            written_us=self._desired.written(uid).written_us,
            clock_off_us=self._clock.off_us,
        )
        return impossibility_of(report, circumstances)

    def _refuse_impossible(
        self, stream: AgentOutlet, report: dispatch_pb2.DispatchReport, why: str
    ) -> Violation | None:
        violation = self._refuse(stream, report, "Impossible", why)
        if self._desired.dispatch(report.dispatch_uid) is not None:
            return violation
        # Nobody waits for it any more; an agent that measures wrongly must not keep it for ever.
        self._desk.let_go(stream, report)
        return None

    def _refuse(
        self, stream: AgentOutlet, report: dispatch_pb2.DispatchReport, reason: str, why: str
    ) -> Violation | None:
        metrics.REFUSED_REPORTS.labels(reason).inc()
        self._refused += 1
        if self._refused > MAX_REFUSED_REPORTS + 1:
            return Violation(reason="BadReport", message=why)  # said already
        self._say_refused(stream, report, reason, why)
        if self._refused > MAX_REFUSED_REPORTS:
            return Violation(reason="BadReport", message=why)
        return None

    def _put_off(self, stream: AgentOutlet, report: dispatch_pb2.DispatchReport) -> None:
        """Refuse a report for which there is no room: its agent repeats it on its next stream."""
        metrics.BOUND_REACHED.labels("reports").inc()
        metrics.REFUSED_REPORTS.labels("NoRoom").inc()
        self._say_refused(
            stream, report, "NoRoom", "the reports of its asset take as much memory as they may"
        )

    def _say_refused(
        self, stream: AgentOutlet, report: dispatch_pb2.DispatchReport, reason: str, why: str
    ) -> None:
        logger_of(stream).error(
            "report.refused",
            reason=reason,
            dispatch_uid=report.dispatch_uid[:MAX_WORD],
            why=why,
        )
