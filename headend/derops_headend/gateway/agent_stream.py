"""One agent's stream from Hello to its end.

The call's own task reads and never waits for a disk. A second task writes, and lives only while
there is something to write: an idle agent costs the memory of one task. Callbacks of the log
acknowledge what arrives, in the order in which it came.
"""

import asyncio
from collections.abc import Callable

import grpc
from google.protobuf.message import DecodeError

from derops.schedules import SECOND_US
from derops.wire.streams import EOF
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_headend.access.certificates import AgentCertificate
from derops_headend.fleet.sessions import Session
from derops_headend.fleet.telemetry import OutboxOrder, Violation
from derops_headend.gateway import metrics
from derops_headend.gateway.agent_clock import AgentClock
from derops_headend.gateway.asset_watch import AssetWatch, Surroundings
from derops_headend.gateway.calls import Context
from derops_headend.gateway.deliveries import without_identity
from derops_headend.gateway.intake import Intake
from derops_headend.gateway.outlets import logger_of
from derops_headend.gateway.stream_parts import StreamParts
from derops_headend.gateway.stream_reports import StreamReports
from derops_headend.gateway.unread_queue import Item, UnreadQueue

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
"""Reasons with which agents end their streams; any other is counted as ``Other``."""

SILENT_HEARTBEATS = 3
_LIVELY_HEARTBEATS = 2
_BYE_SECONDS = 2.0
_MAX_REASON = 64
_MAX_TEXT = 500


class AgentStream:
    """Serves one call of AgentLink.Connect after its Hello was accepted."""

    __slots__ = (
        "_admission",
        "_clock",
        "_context",
        "_deliveries",
        "_desired",
        "_ending",
        "_handler",
        "_heard_us",
        "_heartbeat_seconds",
        "_intake",
        "_monotonic_us",
        "_now_us",
        "_on_end",
        "_operator",
        "_peer_left",
        "_replica",
        "_reports",
        "_said_bye",
        "_unread",
        "_watch",
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
        parts: StreamParts,
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
            since_us=parts.now_us(),
            capability=capability,
        )
        self.ledger_id = hello.ledger_id
        self._context, self._replica = context, parts.replica
        self._desired, self._deliveries = parts.desired, parts.deliveries
        self._operator, self._unread = parts.operator, UnreadQueue(parts.unread, asset.id.uid)
        self._now_us, self._on_end = parts.now_us, parts.on_end
        self._admission = parts.admission
        self._clock = AgentClock()
        self._intake = Intake(
            asset=asset.id,
            order=OutboxOrder(hello.outbox_id, hello.first_sequence),
            clock=self._clock,
            journal=parts.journal,
            admission=parts.admission,
            now_us=parts.now_us,
            monotonic_us=monotonic_us,
        )
        self._reports = StreamReports(
            asset=asset.id,
            clock=self._clock,
            desired=parts.desired,
            deliveries=parts.deliveries,
            desk=parts.reports,
            now_us=parts.now_us,
        )
        self._heartbeat_seconds = heartbeat_seconds
        self._monotonic_us = monotonic_us
        self._heard_us = monotonic_us()
        self._watch = AssetWatch(self._heard_us)
        self._handler: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._ending: agent_pb2.Bye | None = None
        self._peer_left = self._said_bye = False

    # Called by other parts of the gateway

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
        """Queue a dispatch; it is written in the state that it has by then."""
        self._put(dispatch_uid)

    @property
    def is_calm(self) -> bool:
        """Whether all that came is durable, and the agent may send more."""
        return self._intake.is_calm

    def give_credit(self, window: int) -> None:
        """Queue the acknowledgement, with a credit for ``window`` batches on their way."""
        self.send(agent_pb2.GatewayMessage(credit=self._intake.credit(window)))

    def end(self, reason: str, message: str) -> None:
        """Say Bye and end; the first reason stands."""
        if self._ending is None:
            self._ending = agent_pb2.Bye(reason=reason[:_MAX_REASON], message=message[:_MAX_TEXT])
            self._unread.clear()
            # That task waits for a message; if it ends the stream itself, it does not wait.
            if self._handler is not None and self._handler is not asyncio.current_task():
                self._handler.cancel()

    def end_if_silent(self) -> None:
        """End if nothing was heard for three heartbeats."""
        bound = SILENT_HEARTBEATS * self._heartbeat_seconds
        if self._monotonic_us() - self._heard_us > bound * SECOND_US:
            self.end("AgentSilent", f"nothing heard for more than {bound} s")

    # From its start to its end

    async def serve(self) -> None:
        """Run until either side ends. The stream is the live one of its asset already."""
        logger_of(self).info("agent.connected", peer=self.peer)
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
            self._intake.close(self)
            self._on_end(self, bye.reason, bye.message)
            metrics.ENDED_STREAMS.labels(self._label(bye.reason)).inc()
            logger_of(self).info("agent.disconnected", reason=bye.reason, why=bye.message)
            if self._writer is not None:
                await asyncio.wait({self._writer})
        if stuck:  # the peer grants no window for the Bye; only an abort ends such a call
            await self._context.abort(grpc.StatusCode.ABORTED, f"{bye.reason}: {bye.message}")

    def _label(self, reason: str) -> str:
        known = not self._said_bye or reason in AGENT_REASONS
        return reason if known else "Other"

    def _fail(self, failure: Exception) -> None:
        """End because of a failure; log it, unless the connection was lost."""
        if not isinstance(failure, grpc.RpcError | grpc.aio.BaseError):
            logger_of(self).error("stream.failed", exc_info=failure)
        self.end("ConnectionLost", "")

    async def _say_bye(self) -> bool:
        """Write the Bye after the message under way; tell whether the peer took it in time."""
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

    # Writing

    async def _write(self, *, opening: bool = False) -> None:
        """Write what waits, then end."""
        try:
            if opening:
                await self._write_opening()
            while (item := self._unread.take()) is not None:
                await self._write_item(item)
        except Exception as failure:
            self._fail(failure)
        finally:
            self._writer = None

    async def _write_opening(self) -> None:
        welcome = agent_pb2.Welcome(
            now_us=self._now_us(),
            heartbeat_seconds=self._heartbeat_seconds,
            replica=self._replica,
        )
        await self._context.write(agent_pb2.GatewayMessage(welcome=welcome))
        asset = self._desired.asset(self.session.asset_uid)
        if asset is None:
            self.end("AssetRemoved", "the DERAsset is gone")
            return
        if self._desired.missing_of(self.certificate.asset):
            self.end("AssetUnread", "the operator cannot read all that is for this asset")
            return
        revision = self._deliveries.revision()
        dispatches = self._deliveries.to_write(self.session.asset_uid)
        uids = [dispatch.uid for dispatch in dispatches]
        await self._deliveries.claim(uids, self.ledger_id)
        message = agent_pb2.GatewayMessage
        end = agent_pb2.SyncEnd(revision=revision, count=len(dispatches))
        try:
            for part in (
                message(sync_begin=agent_pb2.SyncBegin(revision=revision)),
                message(asset=without_identity(asset)),
                *(
                    message(dispatch=self._desired.as_written(each, self.ledger_id))
                    for each in dispatches
                ),
                message(sync_end=end),
            ):
                if self._ending is not None:
                    return
                await self._context.write(part)
            self._intake.open(self)
        finally:  # a write that failed may have arrived all the same
            for uid in uids:
                self._deliveries.tell(uid)

    async def _write_item(self, item: Item) -> None:
        if isinstance(item, str):
            await self._write_dispatch(item)
            return
        if item.WhichOneof("kind") == "heartbeat_reply":
            item.heartbeat_reply.gateway_sent_us = self._now_us()
        await self._context.write(item)

    async def _write_dispatch(self, uid: str) -> None:
        dispatch = await self._deliveries.claim_offered(uid, self.ledger_id)
        if dispatch is not None:
            revision = self._deliveries.revision()
            await self._context.write(
                agent_pb2.GatewayMessage(dispatch=dispatch, revision=revision)
            )

    def _put(self, item: Item) -> None:
        if self._ending is not None:
            return
        if not self._unread.put(item):
            metrics.BOUND_REACHED.labels("unread").inc()
            self.end("AgentTooSlow", self._unread.describe_full())
            return
        if self._writer is None and self._handler is not None:
            self._writer = asyncio.create_task(self._write())

    # Reading

    async def _read(self) -> None:
        while self._ending is None:
            try:
                # No name for the message: it would keep 64 KiB until the next one comes.
                violation = self._take(await self._context.read())
            except DecodeError:  # gRPC has taken it off the stream and could go on; we do not
                self.end("BadMessage", "the agent sent bytes that are no message of the protocol")
                return
            except asyncio.CancelledError:
                if self._ending is None or self._handler is None or self._handler.uncancel():
                    raise  # gRPC cancelled it: the connection is gone
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
            return self._intake.take_batch(self, message.telemetry)
        if kind == "report":
            return self._reports.take(self, message.report)
        if kind == "gap":
            return self._intake.take_gap(self, message.gap)
        if kind == "heartbeat":
            self._take_heartbeat(message.heartbeat)
        elif kind == "bye":
            self._peer_left = self._said_bye = True
            self.end(message.bye.reason or "Bye", message.bye.message)
        elif kind == "hello":
            return Violation(reason="ProtocolViolation", message="the agent said Hello again")
        return None  # a kind that a newer agent knows is not for us

    def _take_heartbeat(self, heartbeat: agent_pb2.Heartbeat) -> None:
        received_us = self._now_us()
        self._clock.note(heartbeat.agent_sent_us, received_us)
        if self._watch.is_due(self._heard_us):
            self._look(heartbeat, received_us)
        reply = agent_pb2.HeartbeatReply(
            agent_sent_us=heartbeat.agent_sent_us, gateway_received_us=received_us
        )
        self.send(agent_pb2.GatewayMessage(heartbeat_reply=reply))

    def _look(self, heartbeat: agent_pb2.Heartbeat, received_us: int) -> None:
        """Have a look at what a heartbeat says of device and telemetry; tell what is news."""
        asset = self._desired.asset(self.session.asset_uid)
        if asset is None:  # removed: this stream is about to end
            return
        around = Surroundings(
            received_us=received_us,
            # A clock that is set back must not give these facts to an earlier stream.
            at_us=max(received_us, self.session.since_us),
            monotonic_us=self._heard_us,
            interval_seconds=asset.telemetry_interval_seconds,
            refusal=self._intake.refusal,
            free_us=self._admission.free_us,
        )
        if self._watch.take(heartbeat, around):
            self._operator.tell(control_pb2.ReplicaMessage(device=self.device))

    @property
    def device(self) -> control_pb2.DeviceState | None:
        """What its agent last said of the device, and its path; None = nothing yet."""
        return self._watch.state_of(self.session.asset_uid)
