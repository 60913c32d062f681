"""Between the two ports: streams of agents on one side, the operator on the other.

Everything here runs in one event loop; a method without ``await`` is a step that nobody sees half
done. What must survive a restart goes to the store or to the log first.
"""

from asyncio import Lock, sleep
from collections.abc import Callable, Iterable, Iterator, Sequence

from derops.errors import DeropsError, IdentityRefusedError
from derops.revisions import MAX_AHEAD_SECONDS, seconds_ahead
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_headend.access.certificates import AgentCertificate
from derops_headend.access.identity_ledger import admit, check_operating_state
from derops_headend.fleet.desired import BadSyncError, Changes, DesiredState, Snapshot
from derops_headend.fleet.sessions import CloneSuspectedError, SessionTable
from derops_headend.fleet.shares import Shares
from derops_headend.gateway import metrics
from derops_headend.gateway.admission_control import AdmissionControl
from derops_headend.gateway.current_operator import CurrentOperator
from derops_headend.gateway.deliveries import Deliveries, without_identity
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.gateway.log_appender import LogAppender
from derops_headend.gateway.outlets import AgentOutlet, OperatorOutlet, logger_of
from derops_headend.gateway.report_desk import ReportDesk
from derops_headend.gateway.session_memory import SessionMemory
from derops_headend.gateway.unread_queue import UNREAD_BYTES, UNREAD_OF_ONE, UNREAD_SURE

Message = control_pb2.ReplicaMessage
_SWEPT_AT_ONCE = 100


class NotReadyError(DeropsError):
    """There is no complete desired state yet; a gateway that serves without it reverts a fleet."""


class Exchange:
    """The state of one gateway replica and the rules between its parts."""

    def __init__(
        self,
        *,
        replica: str,
        store: DesiredStore,
        journal: LogAppender,
        admission: AdmissionControl,
        now_us: Callable[[], int],
        on_ready: Callable[[], None] = lambda: None,
        on_clock_ahead: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Serve what the store has.

        Args:
            replica: Name of this replica.
            store: Keeps the desired state.
            journal: The way into the event log.
            admission: Decides who may send telemetry.
            now_us: The wall clock.
            on_ready: Called once there is a complete desired state.
            on_clock_ahead: Called with the seconds by which a desired state, stored or refused,
                begins ahead of the clock; 0 = a good one is served.
        """
        self.replica = replica
        self.store = store
        self.journal = journal
        self.admission = admission
        self.now_us = now_us
        self.desired = DesiredState()
        self.operator = CurrentOperator()
        self.deliveries = Deliveries(self.desired, store, self.operator, now_us)
        self.reports = ReportDesk(self.desired, self.operator, journal, now_us)
        self.sessions = SessionTable(metrics.INSTANCES_FORGOTTEN.inc)
        self.memories = SessionMemory(self.sessions, store)
        self.unread = Shares(total=UNREAD_BYTES, most=UNREAD_OF_ONE, sure=UNREAD_SURE)
        self._on_ready = on_ready
        self._on_clock_ahead = on_clock_ahead
        self.headend: Callable[[], control_pb2.HeadendState] | None = None
        """Returns how what lies behind all agents stands, once somebody looks at it."""

        self._streams: dict[str, AgentOutlet] = {}
        self._changing = Lock()
        if (stored := store.load()) is not None:
            self.desired.restore(*stored)
            on_ready()
            ahead = self._seconds_ahead(
                stored[0].revision.era, stored[0].revision.operator_start_ms
            )
            if ahead > MAX_AHEAD_SECONDS:  # an earlier version took it, or this clock is slow
                on_clock_ahead(ahead)
        for memory in store.load_memory():
            self.sessions.restore(memory, now_us())

    # Agents

    def admit(self, certificate: AgentCertificate) -> dispatch_pb2.Asset:
        """Return the asset of a certificate.

        Raises:
            NotReadyError: There is no complete desired state.
            IdentityRefusedError: It may not have a stream now.
        """
        if self.desired.revision is None:
            raise NotReadyError("no complete snapshot from the operator yet")
        self._check_complete(certificate)
        asset = self.desired.asset_named(certificate.asset)
        if asset is None:
            raise IdentityRefusedError(
                "AssetUnknown", f"there is no DERAsset {certificate.asset}", transient=True
            )
        self._check(asset, certificate)
        return asset

    def _check_complete(self, certificate: AgentCertificate) -> None:
        missing = self.desired.missing_of(certificate.asset)
        if missing:
            raise IdentityRefusedError(
                "AssetUnread",
                f"the operator cannot read {missing}, and without it a snapshot of "
                f"{certificate.asset} would revert its device: mend or delete it",
                transient=True,
            )

    def open(self, stream: AgentOutlet) -> None:
        """Make ``stream`` the live one of its asset.

        Raises:
            OutOfOrderError: It may not take over.
            CloneSuspectedError: Two processes use its identity; the live stream is ended as well,
                for nobody knows which of the two is genuine.
        """
        uid, now_us = stream.session.asset_uid, self.now_us()
        ledger, old = self._ledger(uid), self._streams.get(uid)
        alive = old is not None and old.is_alive
        try:
            changed = self.sessions.open(stream.session, ledger, now_us, alive=alive)
        except CloneSuspectedError as clone:
            metrics.CLONES_SUSPECTED.inc()
            logger_of(stream).error("clone.suspected", why=str(clone))
            if old is not None:
                old.end("CloneSuspected", str(clone))
            self.sessions.suspect(stream.session, ledger, now_us)
            self._tell_session(uid, ())
            raise
        self._streams[uid] = stream
        if old is not None:
            old.end("Superseded", f"epoch {stream.session.epoch} took over")
        metrics.CONNECTED_AGENTS.set(len(self._streams))
        self._tell_session(uid, changed)
        self._note_connection(stream, "Connected")

    def close(self, stream: AgentOutlet, reason: str, message: str) -> None:
        """Forget a stream that ended."""
        uid = stream.session.asset_uid
        if self._streams.get(uid) is stream:
            del self._streams[uid]
        metrics.CONNECTED_AGENTS.set(len(self._streams))
        ended = self.sessions.close(stream.session, reason, self.now_us())
        if ended is not None:
            self.operator.tell(Message(session=self.sessions.change(uid, (), self.now_us())))
        self._note_connection(stream, "Disconnected", reason, message)

    def note_refusal(
        self, certificate: AgentCertificate, peer: str, reason: str, message: str
    ) -> None:
        """Put a refused stream of a known asset into the log."""
        asset = self.desired.asset_named(certificate.asset)
        if asset is not None:
            self.journal.put_connection(
                asset.id,
                "Refused",
                reason=reason,
                message=message,
                peer=peer,
                serial_number=certificate.serial_number,
            )

    def measure(self) -> None:
        """Set the metrics of the memory that is held for agents."""
        for part, shares in (
            ("unstored", self.journal.unstored),
            ("unread", self.unread),
            ("reports", self.reports.held),
        ):
            metrics.HELD_BYTES.labels(part).set(shares.used)

    async def end_overdue(self) -> None:
        """End streams whose certificate expired, or whose agent was silent for too long.

        In steps: a look at ten thousand streams at once would make the loop late.
        """
        now_us = self.now_us()
        for number, stream in enumerate(list(self._streams.values()), start=1):
            self._end_if_expired(stream, now_us)
            stream.end_if_silent()
            if number % _SWEPT_AT_ONCE == 0:
                await sleep(0)

    def end_all(self, reason: str, message: str) -> None:
        """End every stream, of agents and of the operator."""
        for stream in list(self._streams.values()):
            stream.end(reason, message)
        self.operator.end(reason, message)

    # Operator

    def check_start(self, era: int, operator_start_ms: int) -> None:
        """Check that an operator may give desired state, before it takes another's place.

        Raises:
            BadSyncError: It began in the future, or before the one whose state is served.
        """
        ahead = self._seconds_ahead(era, operator_start_ms)
        if ahead > MAX_AHEAD_SECONDS:
            self._on_clock_ahead(ahead)
            raise BadSyncError(
                "OperatorClockAhead",
                f"era {era} start {operator_start_ms} is {ahead} s ahead of the gateway's clock, "
                f"{MAX_AHEAD_SECONDS} s are allowed: set the clock of the operator, or this one",
            )
        known = self.desired.revision
        if known is not None and (era, operator_start_ms) < (known.era, known.operator_start_ms):
            raise BadSyncError(
                "StaleOperator", f"era {era} start {operator_start_ms} is behind {known}"
            )

    async def replace(self, operator: OperatorOutlet, snapshot: Snapshot) -> None:
        """Store a complete snapshot, then serve it.

        Raises:
            BadSyncError: It is older than what is served or from the future, or its operator was
                superseded.
        """
        async with self._changing:
            self.operator.check(operator)
            self.check_start(snapshot.revision.era, snapshot.revision.operator_start_ms)
            if self.desired.revision is not None and snapshot.revision < self.desired.revision:
                raise BadSyncError(
                    "StaleOperator", f"{snapshot.revision} is behind {self.desired.revision}"
                )
            snapshot = self.desired.completed(snapshot)
            await self.store.replace(snapshot)
            changes = self.desired.replace(snapshot)
            self._on_ready()
            self._on_clock_ahead(0)
            self._route(changes)

    async def apply(
        self, operator: OperatorOutlet, messages: Sequence[control_pb2.OperatorMessage]
    ) -> None:
        """Store changes, then serve them.

        Raises:
            BadSyncError: The operator was superseded.
        """
        async with self._changing:
            self.operator.check(operator)
            writes = self.deliveries.plan_writes(messages, self._ledger_id_of)
            await self.store.apply(messages, writes)
            for uid, write in writes.items():
                self.desired.note_ahead(uid, write)
            for message in messages:
                self._route(self.desired.apply(message))

    def _ledger_id_of(self, asset_uid: str) -> str | None:
        stream = self._streams.get(asset_uid)
        return stream.ledger_id if stream is not None else None

    def see_epoch(self, seen: control_pb2.EpochSeen) -> None:
        """Take what is known of an asset at all replicas: its newest stream, and its holders."""
        uid, now_us = seen.asset_uid, self.now_us()
        if self.desired.asset(uid) is None:
            return
        ledger, stream = self._ledger(uid), self._streams.get(uid)
        if self.sessions.see(seen, ledger, now_us) and stream is not None:
            alive = stream.is_alive
            stream.end("Superseded", f"epoch {seen.epoch} took over at another replica")
            changed = self.sessions.yield_to(seen, ledger, now_us, alive=alive)
            self._tell_session(uid, changed)
        elif seen.instances:
            self.memories.keep(uid)

    def everything(self) -> Iterator[control_pb2.ReplicaMessage]:
        """Yield all that the operator is told after its snapshot, each as of its turn."""
        for uid in [asset.id.uid for asset in self.desired.assets()]:
            stream = self._streams.get(uid)
            if stream is not None and (device := stream.device) is not None:
                # First: a session of which nothing is told says that nothing is known.
                yield Message(device=device)
            yield Message(session=self.sessions.everything(uid))
        yield from self.deliveries.everything()
        yield from self.reports.everything()
        if self.headend is not None:
            yield Message(headend=self.headend())

    # Between the two

    def _route(self, changes: Changes) -> None:
        self._route_assets(changes)
        self.deliveries.note_stored(changes.begun)
        for dispatch in changes.dispatches:
            if dispatch.asset_uid in self._streams:
                self._streams[dispatch.asset_uid].offer(dispatch.uid)
            self.deliveries.tell(dispatch.uid)
            self.reports.tell(dispatch.uid)  # the operator may not have known the dispatch
        for dispatch in changes.settled:
            self.reports.forget(dispatch.uid)
            if dispatch.asset_uid in self._streams:
                self.reports.settle(self._streams[dispatch.asset_uid], dispatch.uid)
        for uid in changes.assets | {dispatch.asset_uid for dispatch in changes.settled}:
            if uid in self._streams:
                self._end_if_refused(self._streams[uid])

    def _route_assets(self, changes: Changes) -> None:
        for uid in changes.removed_assets:
            if uid in self._streams:
                self._streams[uid].end("AssetRemoved", "the DERAsset is gone")
            self.sessions.forget(uid)
        for uid in changes.assets:
            asset, stream = self.desired.asset(uid), self._streams.get(uid)
            if asset is not None and stream is not None:
                stream.send(
                    agent_pb2.GatewayMessage(
                        asset=without_identity(asset), revision=self.deliveries.revision()
                    )
                )

    def _check(self, asset: dispatch_pb2.Asset, certificate: AgentCertificate) -> None:
        admit(
            asset.identity,
            certificate.serial_number,
            certificate.public_key_sha256,
            self.now_us(),
        )
        if self.sessions.suspected_us(asset.id.uid) > asset.identity.suspected_us:
            raise IdentityRefusedError(
                "CloneSuspected",
                f"two processes use the identity of {certificate.asset}: "
                "the operator is to quarantine it",
            )
        unsettled = len(self.desired.dispatches_of(asset.id.uid))
        check_operating_state(asset.operating_state, dispatches=unsettled)

    def _end_if_refused(self, stream: AgentOutlet) -> None:
        asset = self.desired.asset(stream.session.asset_uid)
        if asset is None:
            return
        try:
            self._check(asset, stream.certificate)
        except IdentityRefusedError as refused:
            stream.end(refused.reason, refused.message)

    def _end_if_expired(self, stream: AgentOutlet, now_us: int) -> None:
        if now_us >= stream.certificate.not_after_us:
            stream.end("CertificateExpired", "the certificate of this stream is no longer valid")
            return
        asset = self.desired.asset(stream.session.asset_uid)
        previous = asset.identity.previous.serial_number if asset is not None else ""
        if previous == stream.certificate.serial_number:
            self._end_if_refused(stream)

    def _seconds_ahead(self, era: int, operator_start_ms: int) -> int:
        return seconds_ahead(era=era, operator_start_ms=operator_start_ms, now_us=self.now_us())

    def _note_connection(
        self, stream: AgentOutlet, event: str, reason: str = "", message: str = ""
    ) -> None:
        asset = stream.certificate.asset
        self.journal.put_connection(
            dispatch_pb2.AssetId(
                uid=stream.session.asset_uid, namespace=asset.namespace, name=asset.name
            ),
            event,
            reason=reason,
            message=message,
            epoch=stream.session.epoch,
            peer=stream.peer,
            serial_number=stream.certificate.serial_number,
        )

    def _ledger(self, asset_uid: str) -> dispatch_pb2.IdentityLedger:
        asset = self.desired.asset(asset_uid)
        return asset.identity if asset is not None else dispatch_pb2.IdentityLedger()

    def _tell_session(self, asset_uid: str, changed: Iterable[control_pb2.Instance]) -> None:
        """Tell the operator of a session, and have the disk remember who held it."""
        session = self.sessions.change(asset_uid, changed, self.now_us())
        self.operator.tell(Message(session=session))
        self.memories.keep(asset_uid)
