"""One agent's stream from Hello to its end.

The call's own task reads and never waits for a disk. A second one lives while there is something to
write and is the only one that does: an idle agent costs the memory of one task. What arrives is
acknowledged by callbacks of the log, in the order it came.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

import grpc
import structlog
from google.protobuf.message import DecodeError

from derops.devices import bounded
from derops.schedules import SECOND_US
from derops.wire.streams import EOF
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2, log_pb2
from derops_headend.access.certificates import AgentCertificate
from derops_headend.fleet.reports import (
    MAX_WORD,
    Circumstances,
    impossibility_of,
    problem_of,
)
from derops_headend.fleet.sessions import Session
from derops_headend.fleet.shares import OVERHEAD_BYTES
from derops_headend.fleet.telemetry import (
    MAX_TIME_US,
    BatchVerdict,
    OutboxOrder,
    Violation,
    check_batch,
    check_gap,
)
from derops_headend.gateway import metrics
from derops_headend.gateway.calls import Context
from derops_headend.gateway.exchange import Exchange, without_identity

MAX_REFUSED_REPORTS = 64
"""Reports that break a rule before the stream is ended."""

MAX_REFUSED_BATCHES = 256
"""Batches that break a rule before the stream is ended."""

MAX_DROPPED_BATCHES = 256
"""Batches beyond the credit before the stream is ended."""

DEVICE_EVERY_US = 5 * SECOND_US
"""How often it is looked at what one agent says of its device."""

MAX_CLOCK_OFFSET_US = 5_000_000
"""An agent refuses dispatches beyond this; its samples are marked."""

AGENT_REASONS = frozenset(
    {
        "BadSnapshot",
        "CertificateRenewed",
        "Failsafe",
        "OutboxReplaced",
        "Overrun",
        "Shutdown",
        "StaleReplica",
        "Withdrawn",
        "WrongAsset",
    }
)
"""Why agents end their streams; whatever else one says is counted as ``Other``."""

SILENT_HEARTBEATS = 3
_LIVELY_HEARTBEATS = 2
_BYE_SECONDS = 2.0
_MAX_REASON = 64
_MAX_TEXT = 500
_WEIGHT_OF_ANSWER = 256
"""Bytes of a message to an agent, beside its own: fewer than what OVERHEAD_BYTES reckons with."""

_log = structlog.get_logger("agent")


class AgentStream:
    """Serves one call of AgentLink.Connect after its Hello was accepted."""

    __slots__ = (
        "_asset_id",
        "_clock_off_us",
        "_clock_offset_milliseconds",
        "_context",
        "_device",
        "_dropped_batches",
        "_ending",
        "_exchange",
        "_handler",
        "_heard_us",
        "_heartbeat_seconds",
        "_look_at_device_us",
        "_monotonic_us",
        "_order",
        "_peer_left",
        "_refused_batches",
        "_refused_reports",
        "_said_bye",
        "_unread",
        "_waiting",
        "_writer",
        "certificate",
        "ledger_id",
        "peer",
        "session",
    )

    def __init__(
        self,
        *,
        context: Context,
        exchange: Exchange,
        certificate: AgentCertificate,
        asset: dispatch_pb2.Asset,
        hello: agent_pb2.Hello,
        opened_us: int,
        heartbeat_seconds: int,
        monotonic_us: Callable[[], int],
    ) -> None:
        capability = agent_pb2.Capability()
        capability.CopyFrom(hello.capability)  # a part of the Hello would keep all of it
        self.certificate = certificate
        self.peer: str = context.peer()
        self.session = Session(
            asset_uid=asset.id.uid,
            epoch=hello.epoch,
            instance_id=hello.instance_id,
            serial_number=certificate.serial_number,
            opened_us=opened_us,
            since_us=exchange.now_us(),
            capability=capability,
        )
        self._context, self._exchange, self._asset_id = context, exchange, asset.id
        self.ledger_id = hello.ledger_id
        self._heartbeat_seconds = heartbeat_seconds
        self._monotonic_us = monotonic_us
        self._heard_us = monotonic_us()
        self._waiting: deque[tuple[agent_pb2.GatewayMessage | str, int]] | None = None
        self._unread = 0
        self._handler: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._order = OutboxOrder(hello.outbox_id, hello.first_sequence)
        self._refused_reports = 0
        self._dropped_batches = self._refused_batches = 0
        self._clock_offset_milliseconds: int | None = None
        self._clock_off_us = 0
        self._device: tuple[agent_pb2.DeviceFacts, int] | None = None
        self._look_at_device_us = 0
        self._ending: agent_pb2.Bye | None = None
        self._peer_left = self._said_bye = False

    # What the exchange asks of it

    @property
    def is_alive(self) -> bool:
        """Whether its agent was heard of within two heartbeats and neither side has ended it."""
        if self._ending is not None or self._peer_left:
            return False
        bound_us = _LIVELY_HEARTBEATS * self._heartbeat_seconds * SECOND_US
        return self._monotonic_us() - self._heard_us <= bound_us

    def send(self, message: agent_pb2.GatewayMessage) -> None:
        """Queue a message."""
        self._put(message)

    def offer(self, dispatch_uid: str) -> None:
        """Queue a dispatch, in the state it has when it is its turn."""
        self._put(dispatch_uid)

    @property
    def is_calm(self) -> bool:
        """Whether all that came is durable, and the agent may send more."""
        return self._order.is_calm

    def give_credit(self, window: int) -> None:
        """Queue what is acknowledged, and what may be on its way from here on."""
        self.send(agent_pb2.GatewayMessage(credit=self._order.credit(window)))

    def end(self, reason: str, message: str) -> None:
        """Say Bye and end; the first reason stands."""
        if self._ending is None:
            self._ending = agent_pb2.Bye(reason=reason[:_MAX_REASON], message=message[:_MAX_TEXT])
            self._waiting = None
            self._note_unread(-self._unread)
            # Until now it has done nothing but read; where it is the one who ends, it knows.
            if self._handler is not None and self._handler is not asyncio.current_task():
                self._handler.cancel()

    def end_if_silent(self) -> None:
        """End where nothing was heard for three heartbeats."""
        bound = SILENT_HEARTBEATS * self._heartbeat_seconds
        if self._monotonic_us() - self._heard_us > bound * SECOND_US:
            self.end("AgentSilent", f"nothing heard for {bound} s")

    # Its life

    async def serve(self) -> None:
        """Run until either side ends. The stream is the live one of its asset already."""
        self._log().info("agent.connected", peer=self.peer)
        self._handler = asyncio.current_task()
        self._writer = asyncio.create_task(self._write(opening=True))
        stuck = False
        try:
            await self._read()
            stuck = not await self._say_bye()
        finally:
            self.end("ConnectionLost", "")
            if self._writer is not None:
                self._writer.cancel()
            bye = self._ending or agent_pb2.Bye()
            self._exchange.admission.forget(self)
            self._exchange.close(self, bye.reason, bye.message)
            metrics.ENDED_STREAMS.labels(self._label(bye.reason)).inc()
            self._log().info("agent.disconnected", reason=bye.reason, why=bye.message)
            if self._writer is not None:
                await asyncio.wait({self._writer})
        if stuck:  # the peer grants no window for the Bye; only an abort ends such a call
            await self._context.abort(grpc.StatusCode.ABORTED, f"{bye.reason}: {bye.message}")

    def _label(self, reason: str) -> str:
        known = not self._said_bye or reason in AGENT_REASONS
        return reason if known else "Other"

    def _fail(self, failure: Exception) -> None:
        """End because of a failure; that a connection is lost is no news."""
        if not isinstance(failure, grpc.RpcError | grpc.aio.BaseError):
            self._log().error("stream.failed", exc_info=failure)
        self.end("ConnectionLost", "")

    async def _say_bye(self) -> bool:
        """Write the Bye behind what is being written; tell whether the peer took it in time."""
        try:
            async with asyncio.timeout(_BYE_SECONDS):
                if self._writer is not None:
                    await asyncio.wait({self._writer})
                if not self._peer_left:
                    await self._context.write(agent_pb2.GatewayMessage(bye=self._ending))
        except TimeoutError:
            return False
        except (grpc.RpcError, grpc.aio.BaseError):
            pass
        return True

    def _log(self) -> structlog.stdlib.BoundLogger:
        """Return a logger that says whose stream it is; made when it is needed, which is seldom."""
        bound: structlog.stdlib.BoundLogger = _log.bind(
            asset=str(self.certificate.asset), epoch=self.session.epoch
        )
        return bound

    # Writing

    async def _write(self, *, opening: bool = False) -> None:
        """Write what waits, then end."""
        try:
            if opening:
                await self._write_opening()
            while self._waiting:
                item, size = self._waiting.popleft()
                self._note_unread(-size)
                await self._write_item(item)
        except Exception as failure:
            self._fail(failure)
        finally:
            self._writer = None

    async def _write_opening(self) -> None:
        welcome = agent_pb2.Welcome(
            now_us=self._exchange.now_us(),
            heartbeat_seconds=self._heartbeat_seconds,
            replica=self._exchange.replica,
        )
        await self._context.write(agent_pb2.GatewayMessage(welcome=welcome))
        asset = self._exchange.desired.asset(self.session.asset_uid)
        if asset is None:
            self.end("AssetRemoved", "the DERAsset is gone")
            return
        if self._exchange.desired.missing_of(self.certificate.asset):
            self.end("AssetUnread", "the operator cannot read all that is for this asset")
            return
        revision = self._exchange.deliveries.revision()
        dispatches = self._exchange.deliveries.to_write(self.session.asset_uid)
        uids = [dispatch.uid for dispatch in dispatches]
        await self._exchange.deliveries.claim(uids, self.ledger_id)
        message = agent_pb2.GatewayMessage
        end = agent_pb2.SyncEnd(revision=revision, count=len(dispatches))
        try:
            for part in (
                message(sync_begin=agent_pb2.SyncBegin(revision=revision)),
                message(asset=without_identity(asset)),
                *(
                    message(dispatch=self._exchange.desired.as_written(each, self.ledger_id))
                    for each in dispatches
                ),
                message(sync_end=end),
            ):
                if self._ending is not None:
                    return
                await self._context.write(part)
            self._exchange.admission.request(self)
        finally:  # a write that failed may have arrived all the same
            for uid in uids:
                self._exchange.deliveries.tell(uid)

    async def _write_item(self, item: agent_pb2.GatewayMessage | str) -> None:
        if isinstance(item, str):
            await self._write_dispatch(item)
            return
        if item.WhichOneof("kind") == "heartbeat_reply":
            item.heartbeat_reply.gateway_sent_us = self._exchange.now_us()
        await self._context.write(item)

    async def _write_dispatch(self, uid: str) -> None:
        deliveries = self._exchange.deliveries
        dispatch = await deliveries.claim_offered(uid, self.ledger_id)
        if dispatch is not None:
            await self._context.write(
                agent_pb2.GatewayMessage(dispatch=dispatch, revision=deliveries.revision())
            )

    def _put(self, item: agent_pb2.GatewayMessage | str) -> None:
        if self._ending is not None:
            return
        if self._waiting is None:
            self._waiting = deque()
        size = _WEIGHT_OF_ANSWER + (0 if isinstance(item, str) else item.ByteSize())
        if not self._exchange.unread.has_room(self.session.asset_uid, size):
            metrics.BOUND_REACHED.labels("unread").inc()
            self.end("AgentTooSlow", f"{self._unread} bytes wait to be read")
            return
        self._note_unread(size)
        self._waiting.append((item, size))
        if self._writer is None and self._handler is not None:
            self._writer = asyncio.create_task(self._write())

    def _note_unread(self, more: int) -> None:
        self._unread += more
        self._exchange.unread.add(self.session.asset_uid, more)

    # Reading

    async def _read(self) -> None:
        while self._ending is None:
            try:
                # No name for the message: it would keep 64 KiB until the next one comes.
                violation = self._take(await self._context.read())
            except DecodeError:  # gRPC has taken it off the stream and could go on; we do not
                self.end("BadMessage", "bytes that are no message of the protocol")
                return
            except asyncio.CancelledError:
                if self._ending is None or self._handler is None or self._handler.uncancel():
                    raise  # gRPC's: the connection is gone
                return
            except Exception as failure:
                self._fail(failure)
                return
            if violation is not None:
                self.end(violation.reason, violation.message)

    def _take(self, message: agent_pb2.AgentMessage) -> Violation | None:
        if self._ending is not None:
            return None  # superseded or refused: what still arrives is not heard
        if message is EOF:
            self._peer_left = True
            self.end("ConnectionLost", "the stream ended without Bye")
            return None
        self._heard_us = self._monotonic_us()
        kind = message.WhichOneof("kind")
        if kind == "telemetry":
            return self._take_telemetry(message.telemetry)
        if kind == "report":
            return self._take_report(message.report)
        if kind == "gap":
            return self._take_gap(message.gap)
        if kind == "heartbeat":
            self._note_clock(message.heartbeat.agent_sent_us)
            if message.heartbeat.HasField("device"):
                self._note_device(message.heartbeat.device)
            reply = agent_pb2.HeartbeatReply(
                agent_sent_us=message.heartbeat.agent_sent_us,
                gateway_received_us=self._exchange.now_us(),
            )
            self.send(agent_pb2.GatewayMessage(heartbeat_reply=reply))
        elif kind == "bye":
            self._peer_left = self._said_bye = True
            self.end(message.bye.reason or "Bye", message.bye.message)
        elif kind == "hello":
            return Violation(reason="ProtocolViolation", message="a second Hello")
        return None  # a kind that a newer agent knows is not for us

    def _note_clock(self, agent_sent_us: int) -> None:
        """Keep how far the agent's clock is off, where that cannot be the way here."""
        offset_us = self._exchange.now_us() - agent_sent_us
        self._clock_off_us = max(self._clock_off_us, min(abs(offset_us), MAX_TIME_US))
        wrong = MAX_CLOCK_OFFSET_US < abs(offset_us) < MAX_TIME_US
        self._clock_offset_milliseconds = offset_us // 1000 if wrong else None

    def _note_device(self, facts: agent_pb2.DeviceFacts) -> None:
        """Keep what is wrong with the device, and have it told if it is news.

        What is not looked at, as it comes too soon, comes again with a later heartbeat.
        """
        if self._monotonic_us() < self._look_at_device_us:
            return
        self._look_at_device_us = self._monotonic_us() + DEVICE_EVERY_US
        held = bounded(facts)
        for point in held.bad_points:
            point.ClearField("samples")  # it rises with each sample, which is no news
        if self._device is None or held != self._device[0]:
            # Not before its stream, whatever becomes of the clock: else an earlier one said it.
            self._device = (held, max(self._exchange.now_us(), self.session.since_us))
            self._exchange.tell_device(self)

    @property
    def device(self) -> control_pb2.DeviceState | None:
        """What its agent last said of the device; None = nothing yet."""
        if self._device is None:
            return None
        facts, received_us = self._device
        return control_pb2.DeviceState(
            asset_uid=self.session.asset_uid, facts=facts, received_us=received_us
        )

    def _take_telemetry(self, batch: agent_pb2.TelemetryBatch) -> Violation | None:
        self._exchange.admission.count()
        verdict = self._place(batch.sequence, batch.outbox_id, gap=False)
        if verdict is not BatchVerdict.STORE:
            return verdict if isinstance(verdict, Violation) else None
        broken = check_batch(batch)
        body = batch.SerializeToString()
        if broken is not None:
            return self._refuse(log_pb2.TELEMETRY, batch.sequence, body, broken)
        metrics.BATCHES.inc()
        metrics.SAMPLES.inc(len(batch.dt_us))
        return self._store(log_pb2.TELEMETRY, body, batch.sequence)

    def _refuse(
        self, kind: log_pb2.EntryKind, sequence: int, body: bytes, broken: Violation
    ) -> Violation | None:
        """Keep a batch or gap for quarantine; where there are too many, end the stream."""
        metrics.REFUSED_BATCHES.inc()
        self._log().warning("telemetry.refused", sequence=sequence, why=broken.message)
        self._refused_batches += 1
        if self._refused_batches > MAX_REFUSED_BATCHES:
            return broken
        refused = agent_pb2.TelemetryRefused(
            sequence=sequence, reason=broken.reason, message=broken.message
        )
        self.send(agent_pb2.GatewayMessage(telemetry_refused=refused))
        return self._store(kind, body, sequence, refused=broken.message)

    def _take_gap(self, gap: agent_pb2.Gap) -> Violation | None:
        verdict = self._place(gap.sequence, gap.outbox_id, gap=True)
        if verdict is not BatchVerdict.STORE:
            return verdict if isinstance(verdict, Violation) else None
        broken = check_gap(gap)
        body = gap.SerializeToString()
        if broken is not None:
            return self._refuse(log_pb2.GAP, gap.sequence, body, broken)
        metrics.GAPS.inc()
        self._log().warning("telemetry.lost", samples=gap.samples, reason=gap.reason)
        return self._store(log_pb2.GAP, body, gap.sequence)

    def _place(self, sequence: int, outbox_id: str, *, gap: bool) -> BatchVerdict | Violation:
        verdict = self._order.take(sequence, outbox_id, gap=gap)
        if verdict is BatchVerdict.BEYOND_CREDIT:
            metrics.DROPPED_BATCHES.inc()
            self._dropped_batches += 1
            if self._dropped_batches > MAX_DROPPED_BATCHES:
                return Violation(reason="CreditIgnored", message="telemetry beyond its credit")
        elif verdict is BatchVerdict.DUPLICATE:
            self._exchange.admission.request(self)
        return verdict

    def _store(
        self, kind: log_pb2.EntryKind, body: bytes, sequence: int, *, refused: str = ""
    ) -> Violation | None:
        size = len(body) + OVERHEAD_BYTES
        if not self._exchange.unstored.take(self._asset_id.uid, size):
            return _too_much_unstored()
        self._exchange.journal.put(
            kind,
            self._asset_id,
            body,
            partial(self._settle, sequence, size),
            refused=refused,
            clock_offset_milliseconds=self._clock_offset_milliseconds,
        )
        return None

    def _settle(self, sequence: int, size: int, error: BaseException | None) -> None:
        self._exchange.unstored.add(self._asset_id.uid, -size)
        if self._is_durable(error):
            self._order.stored(sequence)
            self._exchange.admission.request(self)

    def _take_report(self, report: dispatch_pb2.DispatchReport) -> Violation | None:
        asset = self._exchange.deliveries.owner(self._asset_id, self.ledger_id, report.dispatch_uid)
        problem = self._problem_of(report)
        if problem:
            return self._refuse_report(report, "Malformed", problem)
        if asset is None:
            return self._refuse_report(report, "AnotherAsset", "the dispatch is another asset's")
        problem = self._impossibility_of(report)
        if problem:
            return self._refuse_impossible(report, problem)
        if not self._exchange.reports.may_log(asset.uid, report.dispatch_uid):
            metrics.UNLOGGED_REPORTS.inc()
            self._exchange.reports.let_go(self, report)
            return None
        received = control_pb2.AgentReport(
            asset_uid=asset.uid,
            received_us=self._exchange.now_us(),
            report=report,
            namespace=self.certificate.asset.namespace,
            asset_name=self.certificate.asset.name,
        )
        if not self._exchange.reports.has_room(received):
            self._put_off_report(report)
            return None
        body = report.SerializeToString()
        size = len(body) + OVERHEAD_BYTES
        if not self._exchange.unstored.take(self._asset_id.uid, size):
            return _too_much_unstored()
        # The report itself would stay in memory beside its bytes until they are durable.
        known = dispatch_pb2.DispatchReport(
            dispatch_uid=report.dispatch_uid, sequence=report.sequence
        )

        def settle(error: BaseException | None) -> None:
            self._exchange.unstored.add(self._asset_id.uid, -size)
            if self._is_durable(error):
                self._exchange.reports.acknowledge(self, known)
            else:
                self._exchange.reports.give_up(known)

        self._exchange.reports.hear(received)  # first: the operator waits for it, the log does not
        self._exchange.journal.put(log_pb2.AGENT_REPORT, asset, body, settle)
        return None

    def _problem_of(self, report: dispatch_pb2.DispatchReport) -> str:
        if report.ledger_id != self.ledger_id or not report.dispatch_uid or not report.sequence:
            return "not a report of this stream's ledger"
        return problem_of(report)

    def _impossibility_of(self, report: dispatch_pb2.DispatchReport) -> str:
        desired, uid = self._exchange.desired, report.dispatch_uid
        asset = desired.asset(self.session.asset_uid)
        if asset is None:  # removed: this stream is about to end
            return ""
        circumstances = Circumstances(
            received_us=self._exchange.now_us(),
            asset=asset,
            capability=self.session.capability,
            dispatch=desired.dispatch(uid),
            written_us=desired.written(uid).written_us,
            clock_off_us=self._clock_off_us,
        )
        return impossibility_of(report, circumstances)

    def _refuse_impossible(self, report: dispatch_pb2.DispatchReport, why: str) -> Violation | None:
        violation = self._refuse_report(report, "Impossible", why)
        if self._exchange.desired.dispatch(report.dispatch_uid) is not None:
            return violation
        # Nobody waits for it any more; an agent that measures wrongly is not to keep it for good.
        self._exchange.reports.let_go(self, report)
        return None

    def _refuse_report(
        self, report: dispatch_pb2.DispatchReport, reason: str, why: str
    ) -> Violation | None:
        metrics.REFUSED_REPORTS.labels(reason).inc()
        self._refused_reports += 1
        if self._refused_reports > MAX_REFUSED_REPORTS + 1:
            return Violation(reason="BadReport", message=why)  # said already
        self._log().error(
            "report.refused",
            reason=reason,
            dispatch_uid=report.dispatch_uid[:MAX_WORD],
            why=why,
        )
        if self._refused_reports > MAX_REFUSED_REPORTS:
            return Violation(reason="BadReport", message=why)
        return None

    def _put_off_report(self, report: dispatch_pb2.DispatchReport) -> None:
        """Take no report for which there is no room: its agent says it again on its next stream."""
        metrics.BOUND_REACHED.labels("reports").inc()
        metrics.REFUSED_REPORTS.labels("NoRoom").inc()
        self._log().error(
            "report.refused",
            reason="NoRoom",
            dispatch_uid=report.dispatch_uid[:MAX_WORD],
            why="the reports of its asset take as much memory as they may",
        )

    def _is_durable(self, error: BaseException | None) -> bool:
        if error is not None:
            self.end("LogUnavailable", "the event log did not take what arrived")
            return False
        return True


def _too_much_unstored() -> Violation:
    metrics.BOUND_REACHED.labels("unstored").inc()
    return Violation(reason="TooMuchUnstored", message="what was brought outruns the event log")
