"""One stream of one asset, from Hello to its end.

A stream has one writer task; a second one would break it. It writes Hello first, then all reports
that are not settled. Reports and heartbeats go before telemetry, which runs on credit.
"""

import asyncio
import statistics
from collections import deque
from contextlib import suppress
from typing import Any

import grpc.aio
import structlog

from derops.errors import DeropsError
from derops.ids import AssetName
from derops.wire.streams import EOF
from derops.wire.v1 import agent_pb2, agent_pb2_grpc, dispatch_pb2
from derops_agent import metrics
from derops_agent.asset.controller import AssetController
from derops_agent.asset.inbox import EVENT_BYTES, Acknowledged, Change, Settled, Snapshot
from derops_agent.asset.revisions import order_of
from derops_agent.clock import Clock
from derops_agent.link.reasons import EndReason
from derops_agent.storage import Runner
from derops_agent.telemetry.outbox import Outbox

WELCOME_SECONDS = 10.0
SILENT_HEARTBEATS = 3
_BYE_SECONDS = 1.0  # for the gateway to end its half
_READ_BATCHES = 64
MAX_SNAPSHOT_BYTES = 32 * 1024**2
"""Of all parts between SyncBegin and SyncEnd, each with what it costs as an object."""

_OFFSETS = 5


class StreamEndedError(DeropsError):
    """The stream is over; ``reason`` is a CamelCase word, the gateway's if it said one."""

    def __init__(self, reason: str, message: str = "") -> None:
        super().__init__(f"{reason}: {message}" if message else reason)
        self.reason = reason
        self.message = message


class Stream:
    """One call of AgentLink.Connect over a channel of its own."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        hello: agent_pb2.Hello,
        controller: AssetController,
        outbox: Outbox,
        clock: Clock,
        run: Runner,
    ) -> None:
        self.synchronised = asyncio.Event()
        """Set once the controller has a complete snapshot."""
        self._channel, self._hello = channel, hello
        self._controller, self._outbox, self._clock, self._run = controller, outbox, clock, run
        self._urgent: dict[str, agent_pb2.AgentMessage] = {}
        """By subject: while the gateway does not read, only the newest of each subject waits."""
        self._work = asyncio.Event()
        self._closing = False
        self._sent = self._allowed = hello.first_sequence - 1
        self._held: agent_pb2.TelemetryCredit | None = None
        self._heard_us = clock.monotonic_us()
        self._failsafe_seconds = 0
        self._asset_changed = asyncio.Event()
        self._welcome: asyncio.Future[agent_pb2.Welcome] = asyncio.Future()
        self._snapshot: tuple[agent_pb2.Revision, list[Any]] | None = None
        self._snapshot_bytes = 0
        self._offsets: deque[int] = deque(maxlen=_OFFSETS)
        self._why = StreamEndedError("Closed")
        self._log = structlog.get_logger("session")
        self._send(agent_pb2.AgentMessage(hello=hello))
        self.report_all()

    async def run_until_end(self) -> StreamEndedError:
        """Serve the stream, then close the channel; return why the stream ended."""
        stub: Any = agent_pb2_grpc.AgentLinkStub  # generated without types
        call = stub(self._channel).Connect()
        ended: StreamEndedError | None = None
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(call))
                tasks.create_task(self._read(call))
                tasks.create_task(self._beat())
        except* StreamEndedError as group:
            ended = next(e for e in group.exceptions if isinstance(e, StreamEndedError))
        except* (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            ended = ended or await self._refusal(call)
        finally:
            call.cancel()
            await self._channel.close(None)
            self._welcome.cancel()
            if self.synchronised.is_set():
                metrics.CONNECTED.dec()
        return ended or self._why

    def report_all(self) -> None:
        """Send the latest report of every dispatch that is not settled."""
        for report in self._controller.journal.reports():
            self.report(report)

    def report(self, report: dispatch_pb2.DispatchReport) -> None:
        """Send a report."""
        self._send(agent_pb2.AgentMessage(report=report))

    def telemetry_stored(self) -> None:
        """Note that the outbox has more to send."""
        self._work.set()

    def hold_telemetry(self) -> None:
        """Send no telemetry and take no credit: another stream is about to take over."""
        self._held = agent_pb2.TelemetryCredit(send_through=self._allowed)

    def resume_telemetry(self) -> None:
        """Go on, with the credit that came meanwhile."""
        held, self._held = self._held, None
        if held is not None:
            self._on_credit(held)

    def close(self, reason: EndReason, message: str = "") -> None:
        """Say why in a Bye, then end the stream."""
        self._send(agent_pb2.AgentMessage(bye=agent_pb2.Bye(reason=reason, message=message)))
        self._closing = True
        self._why = StreamEndedError(reason, message)
        self._work.set()

    def _send(self, message: agent_pb2.AgentMessage) -> None:
        if not self._closing:
            about = f"{message.WhichOneof('kind')} {message.report.dispatch_uid}"
            self._urgent[about] = message
            self._work.set()

    async def _write(self, call: Any) -> None:
        while True:
            self._work.clear()
            while self._urgent:
                await call.write(self._urgent.pop(next(iter(self._urgent))))
            if self._closing:
                await call.done_writing()
                await asyncio.sleep(_BYE_SECONDS)
                raise self._why
            for sequence, message in await self._telemetry():
                await call.write(agent_pb2.AgentMessage.FromString(message))
                metrics.BATCHES_SENT.inc()
                self._sent = sequence
                if self._urgent:
                    break
                self._work.set()
            await self._work.wait()

    async def _telemetry(self) -> list[tuple[int, bytes]]:
        through = self._allowed
        if self._sent < self._outbox.gap_sequence:
            # A gap stands for what is no longer there, so no credit has to cover it.
            through = max(through, self._outbox.gap_sequence)
        if self._held is not None or self._sent >= min(through, self._outbox.stored_sequence):
            return []
        rows = self._outbox.recent(self._sent, through)
        if rows is None:
            rows = await self._run(self._outbox.read, self._sent, through, _READ_BATCHES)
        return rows

    async def _read(self, call: Any) -> None:
        while True:
            message = await call.read()
            if message is EOF:
                raise await self._refusal(call)
            if self._closing:
                continue
            self._heard_us = self._clock.monotonic_us()
            self._controller.note_contact()
            kind = message.WhichOneof("kind")
            if kind in ("asset", "dispatch"):
                self._receive(getattr(message, kind), message.revision)
            elif kind is not None:  # None: a kind that a newer gateway knows
                getattr(self, f"_on_{kind}")(getattr(message, kind))

    async def _beat(self) -> None:
        async with _deadline(WELCOME_SECONDS, "NoWelcome"):
            welcome = await self._welcome
        period = max(1, welcome.heartbeat_seconds)
        while True:
            now_us = self._clock.now_us()
            heartbeat = agent_pb2.Heartbeat(
                agent_sent_us=now_us,
                device=self._controller.device_facts(),
                telemetry=self._outbox.facts(now_us),
            )
            self._send(agent_pb2.AgentMessage(heartbeat=heartbeat))
            await self._rest(period)
            silent_us = self._clock.monotonic_us() - self._heard_us
            allowed_seconds = SILENT_HEARTBEATS * period
            if silent_us > allowed_seconds * 1_000_000:
                raise StreamEndedError(
                    "GatewaySilent",
                    f"the gateway was silent for {silent_us / 1e6:.1f} s, {allowed_seconds} s are "
                    f"allowed",
                )

    async def _rest(self, period_seconds: float) -> None:
        """Wait until the next heartbeat is due: well within the asset's failsafeAfterSeconds."""
        if self._failsafe_seconds:
            period_seconds = min(period_seconds, self._failsafe_seconds / SILENT_HEARTBEATS)
        self._asset_changed.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout(period_seconds):
                await self._asset_changed.wait()

    async def _refusal(self, call: Any) -> StreamEndedError:
        """Return why the gateway or the network ended the call."""
        if self._closing:
            return self._why
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                code, details = await call.code(), await call.details()
                if code is grpc.StatusCode.OK:
                    return StreamEndedError("EndedWithoutBye")
                reason, _, message = (details or "").partition(": ")
                if reason.isidentifier():
                    return StreamEndedError(reason, message)
                return StreamEndedError(code.name.title().replace("_", ""), details or "")
        return StreamEndedError("EndedWithoutStatus")

    def _on_welcome(self, welcome: agent_pb2.Welcome) -> None:
        if not self._welcome.done():
            self._note_offset(welcome.now_us - self._clock.now_us())
            self._offsets.clear()  # one way only: good enough until a heartbeat is answered
            self._welcome.set_result(welcome)
            self._log.info("stream.opened", replica=welcome.replica, epoch=self._hello.epoch)

    def _on_sync_begin(self, begin: agent_pb2.SyncBegin) -> None:
        if order_of(begin.revision) < order_of(self._controller.revisions.heard):
            self.close(
                EndReason.STALE_REPLICA,
                "the gateway's desired state is older than one the agent has taken",
            )
        self._snapshot, self._snapshot_bytes = (begin.revision, []), 0

    def _receive(
        self, part: dispatch_pb2.Asset | dispatch_pb2.Dispatch, revision: agent_pb2.Revision
    ) -> None:
        if isinstance(part, dispatch_pb2.Asset):
            named = AssetName(part.id.namespace, part.id.name)
            if named != self._controller.name:
                self.close(
                    EndReason.WRONG_ASSET,
                    f"the agent's asset is {self._controller.name}, not {str(named)[:200]}",
                )
                return
            reverts = part.on_comms_loss == "Revert"
            self._failsafe_seconds = part.failsafe_after_seconds if reverts else 0
            self._asset_changed.set()
        if self._snapshot is not None:
            self._snapshot_bytes += EVENT_BYTES + part.ByteSize()
            if self._snapshot_bytes > MAX_SNAPSHOT_BYTES:
                self._snapshot = None
                self.close(EndReason.BAD_SNAPSHOT, f"it has more than {MAX_SNAPSHOT_BYTES} bytes")
                return
            self._snapshot[1].append(part)
        elif self.synchronised.is_set():
            self._controller.take(Change(part=part, revision=revision))

    def _on_sync_end(self, end: agent_pb2.SyncEnd) -> None:
        if self._snapshot is None:
            self.close(EndReason.BAD_SNAPSHOT, "SyncEnd without SyncBegin")
            return
        revision, messages = self._snapshot
        assets = [m for m in messages if isinstance(m, dispatch_pb2.Asset)]
        orders = [m for m in messages if isinstance(m, dispatch_pb2.Dispatch)]
        complete = len(assets) == 1 and len(orders) == end.count
        if not complete or order_of(end.revision) != order_of(revision):
            self.close(
                EndReason.BAD_SNAPSHOT,
                f"it has {len(assets)} assets of 1 and {len(orders)} dispatches of {end.count}",
            )
            return
        self._snapshot = None
        self._controller.take(Snapshot(revision=end.revision, asset=assets[0], dispatches=orders))
        if not self.synchronised.is_set():
            metrics.CONNECTED.inc()
            self.synchronised.set()

    def _on_credit(self, credit: agent_pb2.TelemetryCredit) -> None:
        if self._held is not None:
            self._held = credit
            return
        self._outbox.acknowledge(credit.acknowledged_through)
        self._sent = max(self._sent, credit.acknowledged_through)
        self._allowed = credit.send_through
        self._work.set()

    def _on_telemetry_refused(self, refused: agent_pb2.TelemetryRefused) -> None:
        metrics.BATCHES_REFUSED.inc()
        self._log.error(
            "telemetry.refused",
            sequence=refused.sequence,
            reason=refused.reason,
            why=refused.message,
        )

    def _on_report_ack(self, ack: agent_pb2.ReportAck) -> None:
        self._controller.take(Acknowledged(sequence=ack.sequence))

    def _on_settled(self, settled: agent_pb2.Settled) -> None:
        self._controller.take(Settled(uid=settled.dispatch_uid))

    def _on_heartbeat_reply(self, reply: agent_pb2.HeartbeatReply) -> None:
        there = reply.gateway_received_us - reply.agent_sent_us
        back = reply.gateway_sent_us - self._clock.now_us()
        self._note_offset((there + back) // 2)

    def _note_offset(self, offset_us: int) -> None:
        # Kept on the monotonic clock: setting the wall clock leaves the earlier offsets true.
        ahead_us = self._clock.now_us() - self._clock.monotonic_us()
        self._offsets.append(offset_us + ahead_us)
        median_us = statistics.median(self._offsets) - ahead_us
        metrics.CLOCK_OFFSET.set(median_us / 1e6)
        self._controller.measure_offset(round(median_us / 1000))

    def _on_bye(self, bye: agent_pb2.Bye) -> None:
        raise StreamEndedError(bye.reason or "Bye", bye.message)


class _deadline:  # noqa: N801  # used like asyncio.timeout
    """Bound a wait: the stream ends if it takes longer."""

    def __init__(self, seconds: float, reason: str) -> None:
        self._timeout = asyncio.timeout(seconds)
        self._reason = reason

    async def __aenter__(self) -> None:
        await self._timeout.__aenter__()

    async def __aexit__(self, kind: Any, error: Any, trace: Any) -> None:
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError as late:
            raise StreamEndedError(self._reason) from late
