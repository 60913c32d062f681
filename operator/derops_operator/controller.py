"""The loop: a key from the queue, a decision, its actions; and status in a loop of its own.

Submission never waits for a status write: the two have their own queues and workers.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import structlog

from derops.backoff import back_off_seconds
from derops.observability import Readiness
from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2
from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError, Kube
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.executor import Executor
from derops_operator.cluster.publisher import Publisher
from derops_operator.cluster.resync import Resync
from derops_operator.cluster.status_writer import StatusWriter
from derops_operator.cluster.troubles import Troubles
from derops_operator.gateways import wire
from derops_operator.gateways.desired import Awaiting, Desired
from derops_operator.gateways.replicas import SESSIONS_WITHIN_US, Fleet
from derops_operator.gateways.sync import GatewaySync
from derops_operator.gateways.views import LOST_AFTER_US
from derops_operator.reconciling.actions import DispatchDecision, RemoveFinalizer, Settle, Submit
from derops_operator.reconciling.assets import reconcile_asset
from derops_operator.reconciling.credibility import Strange, distrust
from derops_operator.reconciling.deadlines import DELETION_GRACE_US
from derops_operator.reconciling.dispatches import reconcile_dispatch
from derops_operator.reconciling.identity import Realm, certificate_name
from derops_operator.resources.assets import Asset
from derops_operator.resources.certificates import Request
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.facts import Fact
from derops_operator.resources.manifests import attempt, describe, identify, read_fact
from derops_operator.resources.objects import Kind, Meta, ObjectKey, Unreadable
from derops_operator.settings import OperatorSettings
from derops_operator.trust.creators import TRANSIENT, Creators
from derops_operator.trust.distribution import Distributor
from derops_operator.workqueue import WorkQueue

_WORKERS = 16
_STATUS_WORKERS = 8
_STUCK_SECONDS = 30.0
_FIRST_LIST_SECONDS = 300.0
_FIRST_RESYNC_SECONDS = 60.0
_HISTORY_US = 24 * 3600 * SECOND_US

_log = structlog.get_logger("controller")


class Controller:
    """All the operator does but watching."""

    def __init__(self, settings: OperatorSettings, kube: Kube, readiness: Readiness) -> None:
        now_us = _now_us()
        self._settings = settings
        self._kube = kube
        self._readiness = readiness
        self._realm = Realm(
            trust_domain=settings.trust_domain,
            issuer=settings.agent_issuer,
            requester=settings.cert_manager_user,
        )
        self.cache = Cache()
        self._creators = Creators(kube, readiness)
        self._fleet = Fleet(now_us)
        self._desired = Desired(operator_start_ms=now_us // 1000, era=settings.era)
        self._queue: WorkQueue[ObjectKey] = WorkQueue()
        self._awaiting = Awaiting[ObjectKey]()
        self._beat = time.monotonic()
        self.loaded = asyncio.Event()
        """Set when all resources were listed; what watches tell is worth hearing from then on."""

        self._events = EventWriter(kube)
        self._troubles = Troubles(self._events, readiness)
        self._actor = Executor(kube, self._events, self.cache, self.take, self.drop, _now_us)
        self._distributor = Distributor(
            kube,
            self.cache,
            self._actor,
            self._events,
            readiness,
            self.take,
            namespace=settings.namespace,
            server_ca_file=settings.server_ca_file,
            realm=self._realm,
        )
        self._resync = Resync(kube, self.cache, self.take, self.drop)
        self._gateways = GatewaySync(
            settings,
            self._desired,
            self._fleet,
            readiness,
            self._concerns,
            self._accepted,
            self._distrust,
            knows=self._knows,
        )
        self._publisher = Publisher(
            self.cache, StatusWriter(kube), self._events, self._gateways.record, self.take
        )
        readiness.expecting("kubernetes", "the resources have not been listed yet")

    @property
    def alive(self) -> bool:
        """Whether the event loop turns and lists are completed; asked from any thread."""
        stuck = time.monotonic() > self._beat + _STUCK_SECONDS
        within_seconds = _FIRST_LIST_SECONDS
        if self.loaded.is_set():
            within_seconds = 3 * self._settings.resync_seconds + 60
        return not (stuck or self._resync.is_overdue(within_seconds))

    async def run(self) -> None:
        """Work until cancelled. The gateways hear nothing before all resources were listed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_beating())
                tasks.create_task(self._events.run())
                await self._load()
                tasks.create_task(self._gateways.run())
                tasks.create_task(self._distributor.run())
                tasks.create_task(self._creators.run())
                tasks.create_task(self._keep_resyncing())
                for _ in range(_WORKERS):
                    tasks.create_task(self._work(self._queue, self._reconcile))
                for _ in range(_STATUS_WORKERS):
                    tasks.create_task(self._work(self._publisher.queue, self._publisher.publish))
        finally:
            self._queue.close()
            self._publisher.queue.close()

    async def renew(self, name: str) -> None:
        """Have a Certificate of the control port issued again: its authority has another key."""
        why = "the control CA has changed, and what it signed before is of no use beside the new"
        await self._distributor.renew(name, "AuthorityChanged", why)

    def take(self, kind: Kind, manifest: Mapping[str, Any]) -> None:
        """Take an object as it is now, from wherever it was heard. Nothing in it stops this."""
        identity = identify(kind, manifest)
        if identity is None:
            _log.error("object.without_name", kind=kind.value)
            return
        key, uid, version = identity
        if self.cache.has(key, uid, version):
            self.cache.see_again(key, _now_us())
            return
        known_uid = self.cache.uid(key)
        if known_uid is not None and known_uid != uid:
            self.drop(key, known_uid)
        found = read_fact(kind, manifest, _now_us())
        healed = key in self.cache.unreadable
        if isinstance(found, Unreadable):
            if self.cache.put_unreadable(found):
                self._troubles.tell(kind, found.meta, found.problem)
                self._concern(key, found)
        elif self.cache.put(kind, found):
            self._troubles.forget(key)
            if isinstance(found, Request) and found.problem:
                self._troubles.tell(kind, found.meta, found.problem)
            self._concern(key, found, ended_too=healed)

    def drop(self, key: ObjectKey, uid: str | None = None) -> None:
        """Forget an object that is gone, and have the gateways forget it."""
        known = self.cache.drop(key, uid)
        if known is None:
            return
        self._publisher.forget(key)
        self._awaiting.discard(key)
        self._troubles.forget(key)
        if key.kind is Kind.DISPATCH:
            self._desired.remove_dispatch(known.meta.uid)
        elif key.kind is Kind.ASSET:
            self._desired.remove_asset(known.meta.uid)
        self._fleet.forget(known.meta.uid)
        self._concern(key, known, ended_too=isinstance(known, Unreadable))

    def _concern(
        self, key: ObjectKey, known: Fact | Unreadable, *, ended_too: bool = False
    ) -> None:
        """Queue all that a change of an object may change."""
        if isinstance(known, Request):
            self._distributor.hear(known)
        if key.kind is Kind.ASSET:
            self._distributor.concern(key.namespace)
            self._queue.add(key)
            for dispatch in self.cache.dispatches_of(key.namespace, key.name):
                if ended_too or not dispatch.phase.terminal:
                    self._queue.add(ObjectKey(Kind.DISPATCH, key.namespace, dispatch.meta.name))
        elif not isinstance(known, Asset):
            if key.kind is Kind.DISPATCH:
                self._queue.add(key)
            self._queue.add(ObjectKey(Kind.ASSET, key.namespace, known.asset_name))
        metrics.QUEUE_LENGTH.set(len(self._queue))

    def _concerns(self, uid: str) -> None:
        key = self.cache.key_of(uid)
        if key is not None:
            self._queue.add(key)

    def _knows(self, uid: str) -> bool:
        """Tell whether there is an object of a uid; it may be one that cannot be read."""
        return self.cache.key_of(uid) is not None or bool(self.cache.unreadable)

    def _distrust(self, message: control_pb2.AgentReport) -> Strange | None:
        """Return why a report does not count, or None."""
        uid = message.report.dispatch_uid
        key = self.cache.key_of(uid)
        fact = self.cache.fact(key) if key is not None else None
        dispatch = fact if isinstance(fact, Dispatch) else None
        return distrust(
            message,
            dispatch,
            self.cache.asset(dispatch.meta.namespace, dispatch.asset_name) if dispatch else None,
            given_to=self._desired.asset_uid_of(uid),
            ledger_ids=self._fleet.ledger_ids(uid),
        )

    def _accepted(self) -> None:
        for key in self._awaiting.take_until(self._fleet.accepted_version()):
            self._queue.add(key)

    async def _load(self) -> None:
        """List everything and build the first desired state, in flight dispatches included."""
        await self._list_until_complete()
        for unread in self.cache.unreadable.values():
            if unread.may_be_held:
                self._keep_held(unread.meta, unread.asset_name)
        for key in self.cache.keys(Kind.ASSET):
            asset = self.cache.asset(key.namespace, key.name)
            if asset is not None:
                self._load_asset(asset)
        for key in self.cache.keys(Kind.DISPATCH):
            dispatch = self.cache.dispatch(key.namespace, key.name)
            if dispatch is not None:
                self._load_dispatch(dispatch)
        self.loaded.set()
        self._readiness.found("kubernetes")
        _log.info("resources.listed", objects=len(self.cache))

    def _load_asset(self, asset: Asset) -> None:
        if not self._can(Kind.ASSET, asset.meta, lambda: self._give_stored(asset)):
            self._keep_held(asset.meta, asset.meta.name)

    def _load_dispatch(self, dispatch: Dispatch) -> None:
        asset = self.cache.asset(dispatch.meta.namespace, dispatch.asset_name)

        def submit() -> None:
            for action in self._decide(dispatch, asset).actions:
                if isinstance(action, Submit):
                    self._submit(dispatch, asset, action)

        def record() -> None:
            ended = dispatch.status.get("completionTime")
            recent = ended is None or dispatch.latest_end_us > _now_us() - _HISTORY_US
            if recent:
                self._publisher.record(dispatch, asset, dispatch.status)

        if dispatch.in_flight or dispatch.is_unreverted:
            kind, meta = Kind.DISPATCH, dispatch.meta
            if self._waits_for_asset(dispatch, asset) or not self._can(kind, meta, submit):
                self._keep_held(meta, dispatch.asset_name)
        self._can(Kind.DISPATCH, dispatch.meta, record)

    def _can(self, kind: Kind, meta: Meta, work: Callable[[], object]) -> bool:
        """Do something for one object alone; where that fails, tell and return False."""
        _, problem = attempt(work)
        if problem:
            self._troubles.tell(kind, meta, problem)
        return not problem

    def _keep_held(self, meta: Meta, asset_name: str) -> None:
        """Have gateways go on with what they hold: a snapshot without it would revert a device."""
        self._desired.put_unread(
            control_pb2.Unread(uid=meta.uid, namespace=meta.namespace, asset_name=asset_name)
        )

    def _waits_for_asset(self, dispatch: Dispatch, asset: Asset | None) -> bool:
        """Tell whether its asset exists and could never be read: nothing can be said of it."""
        key = ObjectKey(Kind.ASSET, dispatch.meta.namespace, dispatch.asset_name)
        return asset is None and key in self.cache.unreadable

    async def _list_until_complete(self) -> None:
        for failures in itertools.count():
            if await self._list_all():
                return
            await asyncio.sleep(back_off_seconds(failures, 0.5, 30.0))

    async def _list_all(self) -> bool:
        try:
            await self._resync.run()
        except (*TRANSIENT, GoneError) as error:
            _log.debug("resources.not_listed", why=str(error)[:300])
            self._readiness.waiting("kubernetes", f"listing failed: {str(error)[:200]}")
            return False
        except Exception as error:  # whatever a list holds, the program goes on and tries again
            _log.exception("resources.not_listed")
            self._readiness.waiting("kubernetes", f"listing failed: {describe(error)[:200]}")
            return False
        return True

    async def _keep_resyncing(self) -> None:
        period_seconds = self._settings.resync_seconds
        # What was deleted between the list at the start and the first watch, nobody reports.
        await asyncio.sleep(min(period_seconds, _FIRST_RESYNC_SECONDS))
        while True:
            await self._list_until_complete()
            self._readiness.found("kubernetes")
            self._forget_strangers()
            for kind in (Kind.ASSET, Kind.DISPATCH):
                for key in self.cache.keys(kind):
                    # Spread, so that none of it stands before what just happened.
                    self._queue.add_after(key, random.uniform(0, period_seconds / 10))
            await asyncio.sleep(period_seconds)

    def _forget_strangers(self) -> None:
        """Forget what replicas said of what does not exist; what cannot be read does."""
        for uid in self._fleet.known_uids():
            if self.cache.key_of(uid) is None:
                self._fleet.forget(uid)

    async def _keep_beating(self) -> None:
        lost: set[str] = set()
        synced: set[tuple[str, int]] = set()
        while True:
            self._beat = time.monotonic()
            metrics.QUEUE_LENGTH.set(len(self._queue))
            replicas = self._fleet.replicas.values()
            gone = {each.name for each in replicas if not each.connected}
            if gone - lost:
                # Their sessions count for a while yet; then all assets are looked at again.
                self._look_at_assets_after(LOST_AFTER_US)
            told = {(each.name, each.synced_us) for each in replicas if each.synced_us}
            if told - synced:
                # They tell what sessions there are; an asset of which they said nothing has none.
                self._look_at_assets_after(SESSIONS_WITHIN_US)
            lost, synced = gone, told
            await asyncio.sleep(1.0)

    def _look_at_assets_after(self, delay_us: int) -> None:
        for key in self.cache.keys(Kind.ASSET):
            self._queue.add_after(key, delay_us / SECOND_US + 1)

    async def _work(
        self, queue: WorkQueue[ObjectKey], work: Callable[[ObjectKey], Coroutine[Any, Any, None]]
    ) -> None:
        while True:
            key = await queue.get()
            result = "done"
            try:
                with metrics.RECONCILE_SECONDS.labels(kind=key.kind.value).time():
                    await work(key)
                queue.forget(key)
                if key not in self.cache.unreadable:
                    self._troubles.forget(key)
            except GoneError:
                result = "gone"
                self.drop(key)
            except ChangedMeanwhileError:
                result = "changed"
                await self._refresh(key)
                queue.add_failed(key)
            except TRANSIENT as error:
                result = "failed"
                seconds = queue.add_failed(key)
                _log.warning(
                    "object.failed",
                    kind=key.kind.value,
                    namespace=key.namespace,
                    name=key.name,
                    why=str(error)[:300],
                    again_seconds=round(seconds, 2),
                )
            except Exception as error:
                result = "failed"
                queue.add_failed(key)
                fact = self.cache.fact(key)
                if fact is not None:
                    self._troubles.tell(key.kind, fact.meta, describe(error), error)
            finally:
                queue.done(key)
                metrics.RECONCILES.labels(kind=key.kind.value, result=result).inc()

    async def _refresh(self, key: ObjectKey) -> None:
        """Read an object anew, so that the next decision does not wait for the watch."""
        try:
            self.take(key.kind, await self._kube.read(key.kind, key.namespace, key.name))
        except GoneError:
            self.drop(key)
        except TRANSIENT as error:
            _log.warning(
                "object.not_read", kind=key.kind.value, name=key.name, why=str(error)[:200]
            )

    async def _reconcile(self, key: ObjectKey) -> None:
        unread = self.cache.unreadable.get(key)
        if unread is not None:
            await self._let_go_deleted(key, unread.meta)
        elif key.kind is Kind.DISPATCH:
            dispatch = self.cache.dispatch(key.namespace, key.name)
            if dispatch is not None:
                await self._reconcile_dispatch(key, dispatch)
        elif key.kind is Kind.ASSET:
            asset = self.cache.asset(key.namespace, key.name)
            if asset is not None:
                await self._reconcile_asset(key, asset)

    async def _let_go_deleted(self, key: ObjectKey, meta: Meta) -> None:
        """Let go of what is being deleted and cannot be read: nobody could ever release it."""
        if meta.deleting_us is None or not meta.holds_finalizer:
            return
        due_us = meta.deleting_us + DELETION_GRACE_US
        if _now_us() > due_us:
            warning = "deleted while it could not be read: what the device did is not known"
            await self._actor.finalize(key.kind, meta, RemoveFinalizer(warning=warning))
        else:
            self._look_again(key, due_us + SECOND_US // 100)

    def _decide(self, dispatch: Dispatch, asset: Asset | None) -> DispatchDecision:
        uid = dispatch.meta.uid
        first_version, version = self._desired.dispatch_versions(uid)
        cancelled = self._desired.is_cancelled(uid)
        return reconcile_dispatch(
            dispatch,
            asset,
            self._fleet.dispatch(uid, first_version, version, cancelled=cancelled),
            _now_us(),
            asset_grace_us=self._settings.asset_grace_seconds * SECOND_US,
            guarded_since_us=self._creators.guarded_since_us,
        )

    async def _reconcile_dispatch(self, key: ObjectKey, stored: Dispatch) -> None:
        asset = self.cache.asset(key.namespace, stored.asset_name)
        if self._waits_for_asset(stored, asset):
            await self._let_go_deleted(key, stored.meta)
            return
        known = self._publisher.with_basis(key, stored)
        decision = self._decide(known, asset)
        for action in decision.actions:
            if isinstance(action, Submit):
                self._submit(stored, asset, action)
                if action.cancelled:
                    self._awaiting.add(key, self._desired.dispatch_versions(stored.meta.uid)[1])
            elif isinstance(action, Settle):
                self._desired.remove_dispatch(stored.meta.uid)
            else:
                await self._actor.act_on_dispatch(key, action)
        self._desired.settle_unread(stored.meta.uid)
        if not known.status.get("createdBy") and "createdBy" in decision.status:
            # A look that began after it was heard of; the order has been given already.
            await self._creators.look()
            decision.status["createdBy"] = known.creator(self._creators.guarded_since_us)
        now = self.cache.fact(key)
        if now is None or now.meta.uid != stored.meta.uid:
            return  # the status of one is none of another that has its name
        self._publisher.want(key, decision.status)
        self._look_again(key, decision.again_us)

    async def _reconcile_asset(self, key: ObjectKey, asset: Asset) -> None:
        now_us = _now_us()
        uid, generation = asset.meta.uid, asset.meta.generation
        version = self._desired.asset_version(uid, generation)
        accepted = version is not None and self._fleet.accepted_version() >= version
        decision = reconcile_asset(
            asset,
            self.cache.requests_of(key.namespace, key.name),
            self._fleet.session(uid, now_us),
            accepted=accepted,
            now_us=now_us,
            certificate=self.cache.certificate(key.namespace, certificate_name(key.name)),
            dispatches=list(self.cache.dispatches_of(key.namespace, key.name)),
            unread=self.cache.unread_dispatches_of(key.namespace, key.name),
            realm=self._realm,
        )
        self._give_asset(asset, decision.status["identity"])
        for action in decision.actions:
            await self._actor.act_on_asset(key, action)
        version = self._desired.asset_version(uid, generation)
        if not accepted and version is not None:
            self._awaiting.add(key, version)
        self._publisher.want(key, decision.status)
        self._look_again(key, decision.again_us)

    def _look_again(self, key: ObjectKey, again_us: int | None) -> None:
        if again_us is not None:
            self._queue.add_after(key, max(0.01, (again_us - _now_us()) / SECOND_US))

    def _give_stored(self, asset: Asset) -> None:
        self._give_asset(asset, asset.status.get("identity", {}))

    def _give_asset(self, asset: Asset, identity: Mapping[str, Any]) -> None:
        self._desired.put_asset(wire.asset_message(asset, identity))

    def _submit(self, dispatch: Dispatch, asset: Asset | None, order: Submit) -> None:
        """Give a dispatch to the gateways, after its asset; it stays with the asset it began on."""
        asset_uid = self._desired.asset_uid_of(dispatch.meta.uid)
        if asset_uid is None:
            if asset is None:
                return
            asset_uid = asset.meta.uid
            if not self._desired.has_asset(asset_uid):
                self._give_stored(asset)
        self._desired.put_dispatch(wire.dispatch_message(dispatch, asset_uid, order))


def _now_us() -> int:
    return time.time_ns() // 1000
