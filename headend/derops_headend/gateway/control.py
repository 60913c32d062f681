"""Control.Sync: the operator's port. A snapshot, then changes, each answered when on disk."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime

import grpc
import structlog

from derops.errors import IdentityRefusedError
from derops.schedules import SECOND_US
from derops.wire.streams import EOF
from derops.wire.v1 import control_pb2, control_pb2_grpc
from derops_headend.access.certificates import OperatorCertificate, authenticate_operator
from derops_headend.fleet.desired import DELTA_KINDS, BadSyncError, SnapshotBuilder
from derops_headend.gateway import metrics
from derops_headend.gateway.calls import Context, peer_certificate
from derops_headend.gateway.exchange import Exchange
from derops_headend.gateway.operator_identity import OperatorIdentity
from derops_headend.gateway.operator_queue import MAX_WAITING_BYTES, OperatorQueue

MAX_INCOMING = 1000
"""The most changes of the operator that wait for the disk; with so many, no more are read."""

_MAX_GROUP = 500
_MAX_BATCH = 50
"""The most messages in one batch; a report has at most 64 KiB, and gRPC takes 4 MiB."""

_END_SECONDS = 2.0
_HELD_BYTES = metrics.HELD_BYTES.labels("operator queue")


class Control(control_pb2_grpc.ControlServicer):
    """Admits the operator; the newest stream wins."""

    def __init__(
        self, exchange: Exchange, identity: OperatorIdentity, *, trust_domain: str
    ) -> None:
        self._exchange, self._identity = exchange, identity
        self._trust_domain = trust_domain
        self._streams: set[OperatorStream] = set()

    async def Sync(  # noqa: N802  # gRPC's name
        self,
        request_iterator: AsyncIterator[control_pb2.OperatorMessage],
        context: Context,
    ) -> None:
        """Serve one operator."""
        now = datetime.fromtimestamp(self._exchange.now_us() / SECOND_US, UTC)
        try:
            certificate = authenticate_operator(peer_certificate(context), self._trust_domain, now)
            await self._identity.admit(certificate)
        except IdentityRefusedError as error:
            metrics.REFUSED_STREAMS.labels(error.reason).inc()
            structlog.get_logger("operator").warning(
                "operator.refused", reason=error.reason, why=error.message, peer=context.peer()
            )
            status = grpc.StatusCode
            code = status.UNAVAILABLE if error.transient else status.UNAUTHENTICATED
            await context.abort(code, str(error))
        self._identity.note_connected(new=True)
        stream = OperatorStream(context, self._exchange, certificate)
        self._streams.add(stream)
        try:
            await stream.serve()
        finally:
            self._streams.discard(stream)

    async def end_overdue(self) -> None:
        """End streams whose certificate expired, or whose key is no longer the operator's."""
        await self._identity.refresh()
        if self._streams:
            self._identity.note_connected(new=False)
        for stream in list(self._streams):
            try:
                self._identity.check(stream.certificate)
            except IdentityRefusedError as error:
                stream.end(error.reason, error.message)


class OperatorStream:
    """One call of Control.Sync."""

    def __init__(
        self, context: Context, exchange: Exchange, certificate: OperatorCertificate
    ) -> None:
        self._context, self._exchange = context, exchange
        self.certificate = certificate
        self._waiting = OperatorQueue()
        self._some = asyncio.Event()
        self._incoming: asyncio.Queue[control_pb2.OperatorMessage | None] = asyncio.Queue(
            MAX_INCOMING
        )
        self._builder: SnapshotBuilder | None = None
        self._synced = self._takes_batches = False
        self._ending: tuple[str, str] | None = None
        self._log = structlog.get_logger("operator").bind(peer=context.peer())

    def tell(self, message: control_pb2.ReplicaMessage) -> None:
        """Queue a change; before the stream's snapshot drop it: that is answered with all."""
        if self._synced:
            self._send(message)

    def has_room_for_stray(self, report: control_pb2.AgentReport) -> bool:
        """Tell whether a report about a dispatch that is not held may wait to be read."""
        return self._waiting.has_room_for_stray(report)

    def end(self, reason: str, message: str) -> None:
        """End the stream; the first reason stands."""
        if self._ending is None:
            self._ending = (reason, message)
            self._some.set()

    async def serve(self) -> None:
        """Run until the operator leaves, a newer one comes, or it breaks the protocol."""
        self._log.info("operator.connected")
        hello = control_pb2.ReplicaHello(
            replica=self._exchange.replica,
            state_since_us=self._exchange.store.state_since_us,
            takes_batches=True,
        )
        self._send(control_pb2.ReplicaMessage(hello=hello))
        writer = asyncio.create_task(self._write())
        tasks = [writer, asyncio.create_task(self._read()), asyncio.create_task(self._work())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            self.end("Closed", "the operator ended the stream")
            await asyncio.wait({writer}, timeout=_END_SECONDS)
        finally:
            _HELD_BYTES.set(0)
            self.end("Closed", "the connection was lost")
            for task in tasks:
                task.cancel()
            self._exchange.operator.detach(self)
            reason, message = self._ending or ("Closed", "")
            self._log.info("operator.disconnected", reason=reason, why=message)
            for failure in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(failure, Exception) and not isinstance(failure, grpc.aio.BaseError):
                    self._log.error("stream.failed", exc_info=failure)
        if reason != "Closed":
            await self._context.abort(grpc.StatusCode.ABORTED, f"{reason}: {message}")

    async def _write(self) -> None:
        """Write what waits as one message: its cost does not depend on what is in it.

        Only one task may write: gRPC ends a stream to which two tasks write.
        """
        while self._ending is None:
            messages = self._waiting.take(_MAX_BATCH if self._takes_batches else 1)
            _HELD_BYTES.set(self._waiting.bytes)
            if not messages:
                self._some.clear()
                await self._some.wait()
                continue
            message = messages[0]
            if len(messages) > 1:
                batch = control_pb2.ReplicaBatch(messages=messages)
                message = control_pb2.ReplicaMessage(batch=batch)
            await self._context.write(message)

    async def _read(self) -> None:
        while True:
            message = await self._context.read()
            if message is EOF:
                await self._incoming.put(None)
                await asyncio.Event().wait()  # what was read is worked off first
            for each in _unpack(message):
                await self._incoming.put(each)

    async def _work(self) -> None:
        """Take what has arrived, in order and in groups: one commit serves many."""
        while True:
            group = [await self._incoming.get()]
            while not self._incoming.empty() and len(group) < _MAX_GROUP:
                group.append(self._incoming.get_nowait())
            messages = [message for message in group if message is not None]
            try:
                await self._take(messages)
            except BadSyncError as error:
                metrics.REFUSED_STREAMS.labels(error.reason).inc()
                self._log.error("operator.refused", reason=error.reason, why=str(error))
                self.end(error.reason, str(error).partition(": ")[2])
                return
            if None in group:
                return

    async def _take(self, messages: list[control_pb2.OperatorMessage]) -> None:
        changes: list[control_pb2.OperatorMessage] = []
        for message in messages:
            kind = message.WhichOneof("kind")
            if kind == "snapshot_begin":
                self._begin_snapshot(message.snapshot_begin)
            elif kind == "snapshot_end":
                await self._take_changes(changes)
                changes = []
                await self._finish_snapshot(message)
            elif self._builder is not None and kind in DELTA_KINDS:
                self._builder.add(message)
            elif kind is not None:
                changes.append(message)
        await self._take_changes(changes)

    def _begin_snapshot(self, begin: control_pb2.SnapshotBegin) -> None:
        """Take the place of an earlier stream, unless this one's state would be refused anyway."""
        if self._ending is not None:  # superseded: it must not take the place back
            raise BadSyncError(*self._ending)
        self._exchange.check_start(begin.era, begin.operator_start_ms)
        self._exchange.operator.attach(self)
        self._builder = SnapshotBuilder(begin.operator_start_ms, begin.era)
        self._takes_batches = begin.takes_batches

    async def _finish_snapshot(self, message: control_pb2.OperatorMessage) -> None:
        if self._builder is None:
            raise BadSyncError("BadSnapshot", "SnapshotEnd without SnapshotBegin")
        snapshot = self._builder.finish(message)
        self._builder = None
        self._synced = False  # all is told anew below
        await self._exchange.replace(self, snapshot)
        self._log.info(
            "snapshot.accepted",
            version=message.version,
            assets=len(snapshot.assets),
            dispatches=len(snapshot.dispatches),
            unread=len(snapshot.unread),
        )
        self._send(control_pb2.ReplicaMessage(accepted_version=message.version))
        self._waiting.put_all(self._exchange.everything())
        self._some.set()
        self._synced = True

    async def _take_changes(self, messages: list[control_pb2.OperatorMessage]) -> None:
        """Make changes durable and serve them, then answer the last of their versions."""
        if not messages:
            return
        deltas = [each for each in messages if each.WhichOneof("kind") in DELTA_KINDS]
        if deltas and not self._synced:
            raise BadSyncError("NoSnapshot", "a change came before the snapshot")
        await self._append_transitions(messages)
        if deltas:
            await self._exchange.apply(self, deltas)
        self._see_epochs(messages)
        if last := max(message.version for message in messages):
            self._send(control_pb2.ReplicaMessage(accepted_version=last))

    async def _append_transitions(self, messages: list[control_pb2.OperatorMessage]) -> None:
        transitions = [each.transition for each in messages if each.HasField("transition")]
        if transitions:
            await self._exchange.journal.append_transitions(transitions)

    def _see_epochs(self, messages: list[control_pb2.OperatorMessage]) -> None:
        for message in messages:
            if message.HasField("epoch_seen"):
                self._exchange.see_epoch(message.epoch_seen)

    def _send(self, message: control_pb2.ReplicaMessage) -> None:
        if self._ending is not None:
            return
        if not self._waiting.put(message):
            metrics.BOUND_REACHED.labels("operator queue").inc()
            self.end(
                "OperatorTooSlow", f"more than {MAX_WAITING_BYTES} bytes would wait to be read"
            )
            return
        _HELD_BYTES.set(self._waiting.bytes)
        self._some.set()


def _unpack(message: control_pb2.OperatorMessage) -> Iterator[control_pb2.OperatorMessage]:
    """Yield the messages of a batch, as copies: a part would keep the whole batch in memory."""
    if not message.HasField("batch"):
        yield message
    for each in message.batch.messages:
        copy = control_pb2.OperatorMessage()
        copy.CopyFrom(each)
        yield copy
