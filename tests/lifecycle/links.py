"""Gateways with their real exchange and store, and the links on both sides of them.

A link is a stream: what is on its way arrives in order, or not at all because the stream was cut.
Reports, orders and words of settlement may besides be lost, repeated and overtaken, which gRPC
would not do: nothing may depend on it.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from tests.headend.gateway.rig import FakeLog
from tests.lifecycle.cluster import KEY, SERIAL
from tests.lifecycle.operating import Operator

from derops.ids import AssetName
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_agent.asset.controller import AssetController
from derops_agent.asset.inbox import Acknowledged, Change, Settled, Snapshot
from derops_agent.asset.revisions import order_of
from derops_headend.access.certificates import AgentCertificate
from derops_headend.fleet.desired import DELTA_KINDS, BadSyncError, SnapshotBuilder
from derops_headend.fleet.reports import Circumstances, impossibility_of, problem_of
from derops_headend.fleet.sessions import Session
from derops_headend.gateway.deliveries import without_identity
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.gateway.exchange import Exchange
from derops_headend.gateway.log_appender import LogAppender

_CERTIFICATE = AgentCertificate(
    asset=AssetName("pilot", "battery"),
    serial_number=SERIAL,
    public_key_sha256=KEY,
    not_after_us=2**62,
)
_LIVELY_US = 20_000_000  # two heartbeats
Down = Snapshot | Change | Acknowledged | Settled


class Gateway:
    """One replica; its disk outlives its process."""

    def __init__(self, number: int, folder: Path, now_us: Callable[[], int]) -> None:
        self.name = f"gateway-{number}"
        self._file = folder / f"{self.name}.db"
        self._now_us = now_us
        self._disks = 0
        self.exchange: Exchange | None = None
        self.unstored: deque[tuple[Stream, dispatch_pb2.DispatchReport]] = deque()
        """What it has heard and its log does not have yet."""

    async def start(self) -> None:
        """Start the process with what the disk has."""
        file = self._file.with_suffix(f".{self._disks}")
        self._store = DesiredStore(file, self._now_us())
        self.exchange = Exchange(
            replica=self.name,
            store=self._store,
            journal=LogAppender(FakeLog(), self.name, self._now_us),
            admission=cast("Any", None),
            now_us=self._now_us,
        )
        self._commits = asyncio.gather(
            self.exchange.deliveries.writes.run(), self.exchange.memories.run()
        )

    @property
    def state_since_us(self) -> int:
        """When its memory begins."""
        return self._store.state_since_us

    async def kill(self, *, lose_disk: bool = False) -> None:
        """End the process."""
        if self.exchange is None:
            return
        self.exchange = None
        self.unstored.clear()
        self._commits.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._commits
        self._store.close()
        self._disks += lose_disk

    def store(self) -> bool:
        """Have the log take what was heard; tell whether there was anything."""
        some = bool(self.unstored)
        while self.unstored and self.exchange is not None:
            self.exchange.reports.acknowledge(*self.unstored.popleft())
        return some


class ControlLink:
    """One stream of Control.Sync."""

    def __init__(self, operator: Operator, gateway: Gateway) -> None:
        assert gateway.exchange is not None
        self.down: deque[control_pb2.OperatorMessage] = deque()
        self.up: deque[control_pb2.ReplicaMessage] = deque()
        self.ended = False
        self._operator, self._exchange, self._name = operator, gateway.exchange, gateway.name
        self._builder: SnapshotBuilder | None = None
        self._synced = self._welcomed = False
        self._exchange.operator.attach(self)
        hello = control_pb2.ReplicaHello(
            replica=gateway.name, state_since_us=self._exchange.store.state_since_us
        )
        self.up.append(control_pb2.ReplicaMessage(hello=hello))
        self._subscription = operator.desired.subscribe()

    # What the exchange asks of it

    def tell(self, message: control_pb2.ReplicaMessage) -> None:
        if self._synced:
            self.up.append(message)

    def has_room_for_stray(self, report: control_pb2.AgentReport) -> bool:
        return True

    def end(self, reason: str, message: str) -> None:
        self.ended = True

    # Its two ways

    def collect(self) -> None:
        """Take what the operator has for this replica onto the way."""
        while messages := self._subscription.take():
            for message in messages:
                if self._welcomed:
                    self._operator.fleet.note_sent(self._name, message.version)
                self.down.append(message)

    async def pass_down(self) -> None:
        """Have the replica take the next message."""
        message = self.down.popleft()
        kind = message.WhichOneof("kind")
        if kind == "snapshot_begin":
            begin = message.snapshot_begin
            self._builder = SnapshotBuilder(begin.operator_start_ms, begin.era)
        elif kind == "snapshot_end":
            await self._finish_snapshot(message)
        elif self._builder is not None and kind in DELTA_KINDS:
            self._builder.add(message)
        else:
            await self._take_change(message, kind)

    async def _finish_snapshot(self, message: control_pb2.OperatorMessage) -> None:
        assert self._builder is not None
        snapshot, self._builder = self._builder.finish(message), None
        try:
            await self._exchange.replace(self, snapshot)
        except BadSyncError:
            self.ended = True
            return
        self.up.append(control_pb2.ReplicaMessage(accepted_version=message.version))
        self.up.extend(self._exchange.everything())
        self._synced = True

    async def _take_change(self, message: control_pb2.OperatorMessage, kind: str | None) -> None:
        try:
            if kind in DELTA_KINDS:
                await self._exchange.apply(self, [message])
        except BadSyncError:
            self.ended = True
            return
        if kind == "epoch_seen":
            self._exchange.see_epoch(message.epoch_seen)
        if message.version:
            self.up.append(control_pb2.ReplicaMessage(accepted_version=message.version))

    def pass_up(self) -> None:
        """Have the operator hear the next message."""
        message = self.up.popleft()
        if message.WhichOneof("kind") == "hello":
            fleet, version = self._operator.fleet, self._operator.desired.version
            fleet.add_replica(
                self._name, message.hello.state_since_us, version, self._exchange.now_us()
            )
            self._welcomed = True
            for seen in fleet.all_seen():
                told = control_pb2.OperatorMessage(epoch_seen=seen)
                self._operator.desired.tell(told, to=self._subscription)
        else:
            self._operator.hear(self._name, message)

    def close(self) -> None:
        """Note the cut on both sides."""
        self._operator.desired.unsubscribe(self._subscription)
        self._exchange.operator.detach(self)
        if self._welcomed:
            self._operator.fleet.lose_replica(self._name, self._exchange.now_us())


class Stream:
    """One stream of AgentLink.Connect; the gateway's end is its outlet."""

    certificate = _CERTIFICATE
    peer = "ipv4:127.0.0.1:1"
    device: control_pb2.DeviceState | None = None

    def __init__(
        self, gateway: Gateway, controller: AssetController, ledger_id: str, session: Session
    ) -> None:
        assert gateway.exchange is not None
        self.session, self.gateway = session, gateway
        self.ended = self.left = self.synchronised = False
        self.wire: deque[Down] = deque()
        self.up: deque[dispatch_pb2.DispatchReport] = deque()
        self._outgoing: deque[agent_pb2.GatewayMessage | str] = deque()
        self._exchange, self._controller, self.ledger_id = gateway.exchange, controller, ledger_id
        self.heard_us = self._exchange.now_us()
        self._exchange.open(self)
        self._opened = False
        self.clock_off_us = 0
        """The most that heartbeats showed the agent's clock to be off."""

    # What the exchange asks of it

    @property
    def is_alive(self) -> bool:
        silent_us = self._exchange.now_us() - self.heard_us
        return not self.ended and not self.left and silent_us <= _LIVELY_US

    def send(self, message: agent_pb2.GatewayMessage) -> None:
        self._outgoing.append(message)

    def offer(self, dispatch_uid: str) -> None:
        self._outgoing.append(dispatch_uid)

    def end(self, reason: str, message: str) -> None:
        self.ended = True

    def end_if_silent(self) -> None:
        raise AssertionError("nobody asks here")

    # Its two ways

    async def write(self) -> bool:
        """Have the gateway write what it has; return whether there was anything."""
        if self.ended or self.left:
            return False
        some = not self._opened or bool(self._outgoing)
        if not self._opened:
            self._opened = True
            await self._write_opening()
        while self._outgoing and not self.ended:
            item = self._outgoing.popleft()
            if isinstance(item, str):
                await self._write_dispatch(item)
            else:
                self._write_other(item)
        return some

    async def _write_opening(self) -> None:
        desired = self._exchange.desired
        asset = desired.asset(self.session.asset_uid)
        assert asset is not None
        dispatches = [
            each
            for each in desired.dispatches_of(self.session.asset_uid)
            if desired.may_be_written(each.uid)
        ]
        revision = self._exchange.deliveries.revision()
        await self._exchange.deliveries.claim([each.uid for each in dispatches], self.ledger_id)
        written = [desired.as_written(each, self.ledger_id) for each in dispatches]
        self.wire.append(
            Snapshot(revision=revision, asset=without_identity(asset), dispatches=written)
        )
        for each in dispatches:
            self._exchange.deliveries.tell(each.uid)

    async def _write_dispatch(self, uid: str) -> None:
        if not self._exchange.desired.may_be_written(uid):
            return
        await self._exchange.deliveries.claim([uid], self.ledger_id)
        dispatch = self._exchange.desired.dispatch(uid)
        if dispatch is not None:
            dispatch = self._exchange.desired.as_written(dispatch, self.ledger_id)
            self.wire.append(Change(part=dispatch, revision=self._exchange.deliveries.revision()))
            self._exchange.deliveries.tell(uid)

    def _write_other(self, message: agent_pb2.GatewayMessage) -> None:
        kind = message.WhichOneof("kind")
        if kind == "report_ack":
            self.wire.append(Acknowledged(sequence=message.report_ack.sequence))
        elif kind == "settled":
            self.wire.append(Settled(uid=message.settled.dispatch_uid))
        elif kind == "asset":
            self.wire.append(Change(part=message.asset, revision=message.revision))

    def read(self) -> None:
        """Have the agent take the next message, as its session does."""
        message = self.wire.popleft()
        if isinstance(message, Snapshot):
            if order_of(message.revision) < order_of(self._controller.revisions.heard):
                self.left = True
                return
            self.synchronised = True
        if self.synchronised:
            self._controller.take(message)

    def pass_up(self) -> None:
        """Have the gateway take the next report; its log has it when it ``store``s."""
        report = self.up.popleft()
        if self.ended or self.gateway.exchange is not self._exchange:
            return
        desired, uid = self._exchange.desired, report.dispatch_uid
        own = desired.asset(self.session.asset_uid)
        assert own is not None
        around = Circumstances(
            received_us=self._exchange.now_us(),
            asset=own,
            capability=self.session.capability,
            dispatch=desired.dispatch(uid),
            written_us=desired.written(uid).written_us,
            clock_off_us=self.clock_off_us,
        )
        problem = problem_of(report) or impossibility_of(report, around)
        assert not problem, f"the gateway refuses an honest report: {problem}: {report} {around}"
        asset = dispatch_pb2.AssetId(uid=self.session.asset_uid)
        assert (
            self._exchange.deliveries.owner(asset, report.ledger_id, report.dispatch_uid) == asset
        )
        received = control_pb2.AgentReport(
            asset_uid=self.session.asset_uid,
            received_us=self._exchange.now_us(),
            report=report,
            namespace=self.certificate.asset.namespace,
            asset_name=self.certificate.asset.name,
        )
        self._exchange.reports.hear(received)
        self.gateway.unstored.append((self, report))

    def close(self) -> None:
        """Have the gateway notice the end."""
        self.ended = True
        if self.gateway.exchange is self._exchange:
            self._exchange.close(self, "ConnectionLost", "")
