"""The order of things: take an object, decide, act, and only then show the status.

No task and no clock of its own: whoever runs it hands over queues, the time and the API server.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import structlog

from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2
from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import TRANSIENT, ChangedMeanwhileError, GoneError
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.executor import Executor
from derops_operator.cluster.ports import Api, Guard, Listener, Queue, Worked
from derops_operator.cluster.status_writer import StatusWriter
from derops_operator.cluster.token_bucket import TokenBucket
from derops_operator.cluster.troubles import Troubles
from derops_operator.gateways.assignment import give_asset, keep_held, submit
from derops_operator.gateways.desired import Awaiting, Desired
from derops_operator.gateways.history import history_messages, last_end_us, may_be_untold
from derops_operator.gateways.replicas import Fleet
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

_log = structlog.get_logger("controller")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What the core acts through."""

    api: Api
    status_bucket: TokenBucket
    """How fast statuses are written."""

    events: EventWriter
    troubles: Troubles
    guard: Guard
    listener: Listener
    work: Queue
    """Objects to look at."""

    publishing: Queue
    """Objects whose status is to be stored."""

    now_us: Callable[[], int]


class Core:
    """All resources, what gateways hold of them, and what is done about each."""

    def __init__(self, ports: Ports, realm: Realm, *, asset_grace_us: int, era: int = 0) -> None:
        self._realm, self._asset_grace_us = realm, asset_grace_us
        self._now_us, self._queue = ports.now_us, ports.work
        self._api, self._guard, self._listener = ports.api, ports.guard, ports.listener
        self._troubles = ports.troubles
        self.cache = Cache()
        self.fleet = Fleet(self._now_us())
        self.desired = Desired(operator_start_ms=self._now_us() // 1000, era=era)
        self._awaiting = Awaiting[ObjectKey]()
        self.executor = Executor(
            ports.api, ports.events, self.cache, self.take, self.drop, self._now_us
        )
        self._statuses = StatusWriter(
            ports.api, ports.status_bucket, self.cache, ports.events, self.take, ports.publishing
        )
        self.publish = self._statuses.publish
        self._loaded = False
        """Whether all was listed: only then is known what the history is to be told again."""

    # What is heard

    def take(self, kind: Kind, manifest: Mapping[str, Any]) -> None:
        """Take an object as it is now, whoever tells of it; nothing in it makes this fail."""
        identity = identify(kind, manifest)
        if identity is None:
            _log.error("object.without_name", kind=kind.value)
            return
        key, uid, version = identity
        if self.cache.has(key, uid, version):
            self.cache.see_again(key, self._now_us())
            return
        known_uid = self.cache.uid(key)
        if known_uid is not None and known_uid != uid:
            self.drop(key, known_uid)
        before = self.cache.fact(key)
        found = read_fact(kind, manifest, self._now_us())
        healed = key in self.cache.unreadable
        if isinstance(found, Unreadable):
            if self.cache.put_unreadable(found):
                self._troubles.tell(kind, found.meta, found.problem)
                self._concern(key, found)
        elif self.cache.put(kind, found):
            self._troubles.forget(key)
            if isinstance(found, Request) and found.problem:
                self._troubles.tell(kind, found.meta, found.problem)
            self._tell_history(found, before)
            self._concern(key, found, ended_too=healed)

    def drop(self, key: ObjectKey, uid: str | None = None) -> None:
        """Forget an object that is gone, and have the gateways forget it."""
        known = self.cache.drop(key, uid)
        if known is None:
            return
        self._statuses.forget(key)
        self._awaiting.discard(key)
        self._troubles.forget(key)
        if key.kind is Kind.DISPATCH:
            self.desired.remove_dispatch(known.meta.uid)
        elif key.kind is Kind.ASSET:
            self.desired.remove_asset(known.meta.uid)
        self.fleet.forget(known.meta.uid)
        self._concern(key, known, ended_too=isinstance(known, Unreadable))

    def _tell_history(self, dispatch: Fact, before: Fact | None = None) -> None:
        """Send to the history what the headend says of a dispatch, once the API server has it.

        So an end that the API server refused was never told. What was stored and not yet sent when
        the process ended is sent at the next start.
        """
        if not isinstance(dispatch, Dispatch) or not self._loaded:
            return
        asset = self.cache.asset(dispatch.meta.namespace, dispatch.asset_name)
        known = before.history if isinstance(before, Dispatch) else ()

        def send() -> None:
            for message in history_messages(dispatch, asset, known):
                self._listener.record(message)

        self._can(Kind.DISPATCH, dispatch.meta, send)

    async def refresh(self, key: ObjectKey) -> None:
        """Read an object anew, so that the next decision does not wait for the watch."""
        try:
            self.take(key.kind, await self._api.read(key.kind, key.namespace, key.name))
        except GoneError:
            self.drop(key)
        except TRANSIENT as error:
            kind, namespace, name = key
            why = str(error)[:200]
            _log.warning("object.not_read", kind=kind, namespace=namespace, name=name, why=why)

    def _concern(
        self, key: ObjectKey, known: Fact | Unreadable, *, ended_too: bool = False
    ) -> None:
        """Queue all that a change of an object may change."""
        if isinstance(known, Request):
            self._listener.note_request(known)
        if key.kind is Kind.ASSET:
            self._listener.note_namespace(key.namespace)
            self._queue.add(key)
            for dispatch in self.cache.dispatches_of(key.namespace, key.name):
                if ended_too or not dispatch.phase.terminal:
                    self._queue.add(ObjectKey(Kind.DISPATCH, key.namespace, dispatch.meta.name))
        elif not isinstance(known, Asset):
            if key.kind is Kind.DISPATCH:
                self._queue.add(key)
            self._queue.add(ObjectKey(Kind.ASSET, key.namespace, known.asset_name))
        metrics.QUEUE_LENGTH.set(len(self._queue))

    def note_news(self, uid: str) -> None:
        """Look again at the asset or dispatch that a replica has said something of."""
        key = self.cache.key_of(uid)
        if key is not None:
            self._queue.add(key)

    def note_accepted(self) -> None:
        """Look again at what waited until a replica had stored a version."""
        for key in self._awaiting.take_until(self.fleet.accepted_version()):
            self._queue.add(key)

    def knows(self, uid: str) -> bool:
        """Tell whether there is an object of a uid; it may be one that cannot be read."""
        return self.cache.key_of(uid) is not None or bool(self.cache.unreadable)

    def distrust(self, message: control_pb2.AgentReport) -> Strange | None:
        """Return why a report does not count, or None."""
        uid = message.report.dispatch_uid
        key = self.cache.key_of(uid)
        fact = self.cache.fact(key) if key is not None else None
        dispatch = fact if isinstance(fact, Dispatch) else None
        return distrust(
            message,
            dispatch,
            self.cache.asset(dispatch.meta.namespace, dispatch.asset_name) if dispatch else None,
            given_to=self.desired.asset_uid_of(uid),
            ledger_ids=self.fleet.ledger_ids(uid),
        )

    def forget_strangers(self) -> None:
        """Forget what replicas said of what does not exist; what cannot be read does."""
        for uid in self.fleet.known_uids():
            if self.cache.key_of(uid) is None:
                self.fleet.forget(uid)

    # The first desired state

    def load(self) -> None:
        """Build the first desired state from all that was listed, in flight dispatches included."""
        self._loaded = True
        for unread in self.cache.unreadable.values():
            if unread.may_be_held:
                keep_held(self.desired, unread.meta, unread.asset_name)
        for key in self.cache.keys(Kind.ASSET):
            asset = self.cache.asset(key.namespace, key.name)
            if asset is not None:
                self._load_asset(asset)
        stored = (self.cache.fact(key) for key in self.cache.keys(Kind.DISPATCH))
        dispatches = [each for each in stored if isinstance(each, Dispatch)]
        last_us = last_end_us(dispatches, self._now_us())
        for dispatch in dispatches:
            self._load_dispatch(dispatch, last_us)

    def _load_asset(self, asset: Asset) -> None:
        if not self._can(Kind.ASSET, asset.meta, lambda: give_asset(self.desired, asset)):
            keep_held(self.desired, asset.meta, asset.meta.name)

    def _load_dispatch(self, dispatch: Dispatch, last_us: int) -> None:
        asset = self.cache.asset(dispatch.meta.namespace, dispatch.asset_name)

        def submit_again() -> None:
            for action in self.decide(dispatch, asset).actions:
                if isinstance(action, Submit):
                    submit(self.desired, dispatch, asset, action)

        def tell_again() -> None:
            if may_be_untold(dispatch, last_us):
                self._tell_history(dispatch)

        if dispatch.in_flight or dispatch.is_unreverted:
            kind, meta = Kind.DISPATCH, dispatch.meta
            if self._waits_for_asset(dispatch, asset) or not self._can(kind, meta, submit_again):
                keep_held(self.desired, meta, dispatch.asset_name)
        self._can(Kind.DISPATCH, dispatch.meta, tell_again)

    def _can(self, kind: Kind, meta: Meta, work: Callable[[], object]) -> bool:
        """Do something for one object; where that fails, tell of it and return False."""
        _, problem = attempt(work)
        if problem:
            self._troubles.tell(kind, meta, problem)
        return not problem

    # One object at a time

    async def work(
        self, queue: Worked, key: ObjectKey, step: Callable[[ObjectKey], Awaitable[None]]
    ) -> None:
        """Do one step for a key that ``queue`` gave; where that fails, have it given again."""
        result = "done"
        try:
            with metrics.RECONCILE_SECONDS.labels(kind=key.kind.value).time():
                await step(key)
            queue.forget(key)
            if key not in self.cache.unreadable:
                self._troubles.forget(key)
        except GoneError:
            result = "gone"
            self.drop(key)
        except ChangedMeanwhileError:
            result = "changed"
            await self.refresh(key)
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
                retry_seconds=round(seconds, 2),
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

    async def reconcile(self, key: ObjectKey) -> None:
        """Decide about one object, act on it, and say which status it is to have."""
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
        """Let go of a deleted object that cannot be read: nobody else could ever release it."""
        if meta.deleting_us is None or not meta.holds_finalizer:
            return
        due_us = meta.deleting_us + DELETION_GRACE_US
        if self._now_us() > due_us:
            warning = "deleted while it could not be read: what the device did is not known"
            await self.executor.finalize(key.kind, meta, RemoveFinalizer(warning=warning))
        else:
            self._look_again(key, due_us + SECOND_US // 100)

    def decide(self, dispatch: Dispatch, asset: Asset | None) -> DispatchDecision:
        """Decide about one dispatch by what is known of it now; nothing is done."""
        uid = dispatch.meta.uid
        first_version, version = self.desired.dispatch_versions(uid)
        cancelled = self.desired.is_cancelled(uid)
        return reconcile_dispatch(
            dispatch,
            asset,
            self.fleet.dispatch(uid, first_version, version, cancelled=cancelled),
            self._now_us(),
            asset_grace_us=self._asset_grace_us,
            guarded_since_us=self._guard.guarded_since_us,
        )

    async def _reconcile_dispatch(self, key: ObjectKey, stored: Dispatch) -> None:
        asset = self.cache.asset(key.namespace, stored.asset_name)
        if self._waits_for_asset(stored, asset):
            await self._let_go_deleted(key, stored.meta)
            return
        known = self._statuses.with_basis(key, stored)
        decision = self.decide(known, asset)
        for action in decision.actions:
            if isinstance(action, Submit):
                submit(self.desired, stored, asset, action)
                if action.cancelled:
                    self._awaiting.add(key, self.desired.dispatch_versions(stored.meta.uid)[1])
            elif isinstance(action, Settle):
                self.desired.remove_dispatch(stored.meta.uid)
            else:
                await self.executor.act_on_dispatch(key, action)
        self.desired.settle_unread(stored.meta.uid)
        if not known.created_by and "createdBy" in decision.status:
            # A look that began after it was heard of; the order has been given already.
            await self._guard.look()
            decision.status["createdBy"] = known.creator(self._guard.guarded_since_us)
        now = self.cache.fact(key)
        if now is None or now.meta.uid != stored.meta.uid:
            return  # the status of one is none of another that has its name
        self._statuses.want(key, decision.status)
        self._look_again(key, decision.again_us)

    async def _reconcile_asset(self, key: ObjectKey, asset: Asset) -> None:
        now_us = self._now_us()
        uid, generation = asset.meta.uid, asset.meta.generation
        version = self.desired.asset_version(uid, generation)
        accepted = version is not None and self.fleet.accepted_version() >= version
        decision = reconcile_asset(
            asset,
            self.cache.requests_of(key.namespace, key.name),
            self.fleet.session(uid, now_us),
            accepted=accepted,
            now_us=now_us,
            certificate=self.cache.certificate(key.namespace, certificate_name(key.name)),
            dispatches=list(self.cache.dispatches_of(key.namespace, key.name)),
            unread=self.cache.unread_dispatches_of(key.namespace, key.name),
            realm=self._realm,
        )
        give_asset(self.desired, asset, decision.status["identity"])
        for action in decision.actions:
            await self.executor.act_on_asset(key, action)
        version = self.desired.asset_version(uid, generation)
        if not accepted and version is not None:
            self._awaiting.add(key, version)
        self._statuses.want(key, decision.status)
        self._look_again(key, decision.again_us)

    def _look_again(self, key: ObjectKey, again_us: int | None) -> None:
        if again_us is not None:
            self._queue.add_after(key, max(0.01, (again_us - self._now_us()) / SECOND_US))

    def _waits_for_asset(self, dispatch: Dispatch, asset: Asset | None) -> bool:
        """Tell whether its asset exists and could never be read: nothing is decided until it is."""
        key = ObjectKey(Kind.ASSET, dispatch.meta.namespace, dispatch.asset_name)
        return asset is None and key in self.cache.unreadable
