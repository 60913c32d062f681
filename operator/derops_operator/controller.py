"""The operator's tasks: what runs the core, how often, and how many at once.

Submission never waits for a status write: the two have their own queues and workers. Nor do
dispatches wait for assets, whose links may all change at once.
"""

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable

import structlog

from derops.backoff import back_off_seconds
from derops.observability import Readiness
from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2
from derops_operator import metrics
from derops_operator.cluster.client import TRANSIENT, GoneError, Kube
from derops_operator.cluster.counting import keep_counting
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.resync import Resync
from derops_operator.cluster.status_writer import BURST, WRITES_PER_SECOND
from derops_operator.cluster.token_bucket import TokenBucket
from derops_operator.cluster.troubles import Troubles
from derops_operator.core import Core, Ports
from derops_operator.gateways.replicas import SESSIONS_WITHIN_US
from derops_operator.gateways.sync import GatewaySync
from derops_operator.gateways.views import LOST_AFTER_US
from derops_operator.installation import InstallationTeller
from derops_operator.reconciling.identity import Realm
from derops_operator.resources.certificates import Request
from derops_operator.resources.manifests import describe
from derops_operator.resources.objects import Kind, ObjectKey
from derops_operator.settings import OperatorSettings
from derops_operator.trust.creators import Creators
from derops_operator.trust.distribution import Distributor
from derops_operator.workqueue import Lanes, WorkQueue

_WORKERS = 16
_ASSET_WORKERS = 8
_STATUS_WORKERS = 8
_ASSET_STATUS_WORKERS = 4
_STUCK_SECONDS = 30.0
_FIRST_LIST_SECONDS = 300.0
_FIRST_RESYNC_SECONDS = 60.0

_log = structlog.get_logger("controller")


class Controller:
    """All the operator does but watching."""

    def __init__(self, settings: OperatorSettings, kube: Kube, readiness: Readiness) -> None:
        self._settings = settings
        self._readiness = readiness
        realm = Realm(
            trust_domain=settings.trust_domain,
            issuer=settings.agent_issuer,
            requester=settings.cert_manager_user,
        )
        self._creators = Creators(kube, readiness)
        self.queue: Lanes[ObjectKey] = Lanes(_is_order)
        self._publishing: Lanes[ObjectKey] = Lanes(_is_order)
        self._beat = time.monotonic()
        self.loaded = asyncio.Event()
        """Set when all resources were listed; what watches tell is worth hearing from then on."""

        self.events = EventWriter(kube)
        ports = Ports(
            api=kube,
            status_bucket=TokenBucket(WRITES_PER_SECOND, BURST),
            events=self.events,
            troubles=Troubles(self.events, readiness),
            guard=self._creators,
            listener=self,
            work=self.queue,
            publishing=self._publishing,
            now_us=_now_us,
        )
        asset_grace_us = settings.asset_grace_seconds * SECOND_US
        self.core = Core(ports, realm, asset_grace_us=asset_grace_us, era=settings.era)
        self._distributor = Distributor(
            kube,
            self.core.cache,
            self.core.executor,
            self.events,
            readiness,
            self.core.take,
            namespace=settings.namespace,
            server_ca_file=settings.server_ca_file,
            realm=realm,
        )
        self.resync = Resync(kube, self.core.cache, self.core.take, self.core.drop)
        self._gateways = GatewaySync(
            settings,
            self.core.desired,
            self.core.fleet,
            readiness,
            self.core.note_news,
            self.core.note_accepted,
            self.core.distrust,
            knows=self.core.knows,
        )
        self._installation = InstallationTeller(
            kube, self.core.fleet, readiness, settings.namespace, _now_us
        )
        readiness.expecting("kubernetes", "the resources have not been listed yet")

    @property
    def alive(self) -> bool:
        """Whether the event loop turns and lists are completed; asked from any thread."""
        stuck = time.monotonic() > self._beat + _STUCK_SECONDS
        within_seconds = _FIRST_LIST_SECONDS
        if self.loaded.is_set():
            within_seconds = 3 * self._settings.resync_seconds + 60
        return not (stuck or self.resync.is_overdue(within_seconds))

    async def run(self) -> None:
        """Work until cancelled. The gateways hear nothing before all resources were listed."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_beating())
                tasks.create_task(self.events.run())
                await self._load()
                tasks.create_task(self._gateways.run())
                tasks.create_task(self._distributor.run())
                tasks.create_task(self._creators.run())
                tasks.create_task(self._installation.run())
                tasks.create_task(self._keep_resyncing())
                tasks.create_task(keep_counting(self.core.cache, _now_us))
                for queue, step, workers in (
                    (self.queue.urgent, self.core.reconcile, _WORKERS),
                    (self.queue.other, self.core.reconcile, _ASSET_WORKERS),
                    (self._publishing.urgent, self.core.publish, _STATUS_WORKERS),
                    (self._publishing.other, self.core.publish, _ASSET_STATUS_WORKERS),
                ):
                    for _ in range(workers):
                        tasks.create_task(self._work(queue, step))
        finally:
            self.queue.close()
            self._publishing.close()

    async def renew(self, name: str) -> None:
        """Have a Certificate of the control port issued again: its authority has another key."""
        why = "the control CA has changed, and what it signed before is of no use beside the new"
        await self._distributor.renew(name, "AuthorityChanged", why)

    # What the core has to tell others

    def record(self, transition: control_pb2.HeadendTransition) -> None:
        """Send a transition to the history, by any gateway."""
        self._gateways.record(transition)

    def note_request(self, request: Request) -> None:
        """Have the trust that agents are given follow a CertificateRequest."""
        self._distributor.hear(request)

    def note_namespace(self, namespace: str) -> None:
        """Have the trust that agents are given follow the assets of a namespace."""
        self._distributor.concern(namespace)

    async def _load(self) -> None:
        """List everything and build the first desired state of the gateways."""
        await self._list_until_complete()
        self.core.load()
        self.loaded.set()
        self._readiness.found("kubernetes")
        _log.info("resources.listed", objects=len(self.core.cache))

    async def _list_until_complete(self) -> None:
        for failures in itertools.count():
            if await self._list_all():
                return
            await asyncio.sleep(back_off_seconds(failures, 0.5, 30.0))

    async def _list_all(self) -> bool:
        try:
            await self.resync.run()
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
            self.core.forget_strangers()
            for kind in (Kind.ASSET, Kind.DISPATCH):
                for key in self.core.cache.keys(kind):
                    # Spread, so that none of it stands before what just happened.
                    self.queue.add_after(key, random.uniform(0, period_seconds / 10))
            await asyncio.sleep(period_seconds)

    async def _keep_beating(self) -> None:
        lost: set[str] = set()
        synced: set[tuple[str, int]] = set()
        while True:
            self._beat = time.monotonic()
            metrics.QUEUE_LENGTH.set(len(self.queue))
            replicas = self.core.fleet.replicas.values()
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
        for key in self.core.cache.keys(Kind.ASSET):
            self.queue.add_after(key, delay_us / SECOND_US + 1)

    async def _work(
        self, queue: WorkQueue[ObjectKey], step: Callable[[ObjectKey], Awaitable[None]]
    ) -> None:
        while True:
            await self.core.work(queue, await queue.get(), step)


def _is_order(key: ObjectKey) -> bool:
    return key.kind is Kind.DISPATCH


def _now_us() -> int:
    return time.time_ns() // 1000
