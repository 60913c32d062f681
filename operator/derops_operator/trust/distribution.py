"""The certificates of the authorities, carried to who must trust them: one ConfigMap each.

``bundles`` and ``reconciling.agent_authority`` decide what is told, ``authorities`` sees it, and
``config_maps`` writes it. This compares both, and says what it could not do. A namespace that
fails makes no other wait.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import structlog

from derops.observability import Readiness
from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError, Kube
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.executor import Executor
from derops_operator.reconciling.identity import Realm
from derops_operator.resources.certificates import Request
from derops_operator.resources.manifests import describe
from derops_operator.resources.objects import Kind
from derops_operator.trust.authorities import Authorities
from derops_operator.trust.bundles import next_bundle
from derops_operator.trust.config_maps import AGENT_CA, SERVER_CA, HeldConfigMap, TrustConfigMaps
from derops_operator.workqueue import WorkQueue

LOOK_SECONDS = 5.0
"""How often the file is looked at."""

RECHECK_SECONDS = 30.0
"""How often all ConfigMaps are looked at: within it, what somebody changed is taken back."""

MOST_TOLD = 5
"""Assets of a namespace that get an Event, and namespaces that are named on /readyz."""

_WORKERS = 4
_NAMESPACES_PART = "server CA in namespaces"
_TERMINATING = "because it is being terminated"

_log = structlog.get_logger("authorities")


class Distributor:
    """Keeps the ConfigMaps. ``run`` once all resources were listed."""

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        actor: Executor,
        events: EventWriter,
        readiness: Readiness,
        take: Callable[[Kind, Mapping[str, Any]], None],
        *,
        namespace: str,
        server_ca_file: Path,
        realm: Realm,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make it.

        Args:
            kube: The API server.
            cache: Which namespaces have assets, and the requests of our own certificate.
            actor: Approves and renews.
            events: Told where a namespace lacks what its agents need.
            readiness: The same, and what is wrong with an authority.
            take: Given each Certificate that the API server answers with.
            namespace: Ours; nobody else may write in it.
            server_ca_file: Certificate of the server CA, mounted.
            realm: Which issuer signs agents, and who asks it.
            now: Decides what has expired.
            monotonic: Seconds that no clock sets.
        """
        self._cache, self._events, self._readiness = cache, events, readiness
        self._namespace, self._now, self._monotonic = namespace, now, monotonic
        self._config_maps = TrustConfigMaps(kube)
        self._authorities = Authorities(
            kube,
            cache,
            actor,
            readiness,
            take,
            namespace=namespace,
            server_ca_file=server_ca_file,
            realm=realm,
            now=now,
            monotonic=monotonic,
        )
        self._queue: WorkQueue[str] = WorkQueue()
        self._wake = asyncio.Event()
        self._server = ""
        """What namespaces are to hold; empty = not known, nothing is written."""

        self._held: dict[str, HeldConfigMap] = {}
        self._failing: dict[str, str] = {}
        self._seen: tuple[bytes, bytes] | None = None
        self._checked = -float("inf")

    def concern(self, namespace: str) -> None:
        """Hear that assets came to a namespace or went."""
        self._queue.add(namespace)

    def hear(self, request: Request) -> None:
        """Hear of a request to some authority."""
        if self._authorities.hear(request):
            self._wake.set()

    async def run(self) -> None:
        """Look after it all until cancelled; whatever fails is told and tried again."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._keep_looking())
                for _ in range(_WORKERS):
                    tasks.create_task(self._work())
        finally:
            self._queue.close()

    async def _keep_looking(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.look()
            except Exception as error:  # the API server may be away
                why = f"cannot be looked at: {describe(error)}"
                self._readiness.degraded(_NAMESPACES_PART, why)
            else:
                self._show_failures()
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
                    await asyncio.sleep(0.2)  # what comes together is looked at once

    async def look(self) -> None:
        """Look once: at the file and our certificate, and at all ConfigMaps where it is time."""
        server = await self._authorities.find_server_ca()
        agent = await self._authorities.find_agent_ca(due=self._is_due)
        if not self._is_due and (server, agent) == self._seen:
            return
        await self._compare(await self._keep_own(SERVER_CA, server))
        await self._keep_own(AGENT_CA, agent)
        self._seen, self._checked = (server, agent), self._monotonic()

    async def renew(self, name: str, reason: str, message: str) -> None:
        """Have a Certificate of our namespace issued again, once a minute at most."""
        await self._authorities.renew(name, reason, message)

    @property
    def _is_due(self) -> bool:
        """Whether all is to be looked at again, unchanged or not."""
        return self._monotonic() >= self._checked + RECHECK_SECONDS

    async def _keep_own(self, name: str, current: bytes) -> str:
        """Keep a ConfigMap in our own namespace; return what it holds. It is the only memory."""
        held = await self._config_maps.read(self._namespace, name)
        earlier = held.pem if held is not None else ""
        if not current:
            return earlier
        bundle = next_bundle(current, earlier, self._now())
        if bundle.left_out:
            _log.warning("authorities.left_out", name=name, certificates=bundle.left_out)
        if held is None or not held.ours or held.pem != bundle.pem or not held.mendable:
            await self._config_maps.write(self._namespace, name, bundle.pem, held)
            _log.info("authorities.told", name=name, authorities=bundle.authorities)
        return bundle.pem

    async def _compare(self, pem: str) -> None:
        """Queue each namespace whose ConfigMap is not as it should be."""
        self._server = pem
        self._held = found = await self._config_maps.read_all(SERVER_CA)
        for namespace in self._cache.namespaces() | found.keys():
            if self._is_to_do(namespace):
                self._queue.add(namespace)
        for namespace in self._failing.keys() - self._cache.namespaces():
            self._forget_failure(namespace)

    def _is_to_do(self, namespace: str) -> bool:
        held = self._held.get(namespace)
        if namespace == self._namespace or not self._server:
            return False
        if not self._cache.has_assets(namespace):
            return held is not None and held.ours
        return held is None or not held.ours or not held.mendable or held.pem != self._server

    async def _work(self) -> None:
        while True:
            namespace = await self._queue.get()
            try:
                if self._is_to_do(namespace):
                    await self._keep(namespace)
                self._queue.forget(namespace)
                self._forget_failure(namespace)
            except ChangedMeanwhileError:
                await self._see_anew(namespace)
            except Exception as error:  # of whatever kind: it is this namespace's alone
                if _is_going(error):
                    self._forget_failure(namespace)
                else:
                    self._queue.add_failed(namespace)
                    self._note_failure(namespace, describe(error))
            finally:
                self._queue.done(namespace)

    async def _keep(self, namespace: str) -> None:
        held = self._held.get(namespace)
        if self._cache.has_assets(namespace):
            self._held[namespace] = await self._config_maps.write(
                namespace, SERVER_CA, self._server, held
            )
        elif held is not None:
            self._held.pop(namespace, None)
            await self._config_maps.delete(namespace, SERVER_CA, held)

    async def _see_anew(self, namespace: str) -> None:
        """Look at one that somebody else changed meanwhile, then decide again."""
        try:
            held = await self._config_maps.read(namespace, SERVER_CA)
        except Exception as error:
            self._note_failure(namespace, describe(error))
        else:
            self._held.pop(namespace, None)
            if held is not None:
                self._held[namespace] = held
        self._queue.add_failed(namespace)

    def _note_failure(self, namespace: str, why: str) -> None:
        if self._failing.get(namespace) == why:
            return
        if namespace not in self._failing:
            _log.warning("authorities.not_told", namespace=namespace, why=why)
            note = f"ConfigMap {SERVER_CA} cannot be written, without it no agent starts: {why}"
            for asset in islice(self._cache.assets_in(namespace), MOST_TOLD):
                meta, reason = asset.meta, "TrustNotDelivered"
                self._events.post(Kind.ASSET, meta, warning=True, reason=reason, note=note)
        self._failing[namespace] = why
        self._show_failures()

    def _forget_failure(self, namespace: str) -> None:
        if self._failing.pop(namespace, None) is not None:
            self._show_failures()

    def _show_failures(self) -> None:
        metrics.TRUST_FAILING.set(len(self._failing))
        if not self._failing:
            self._readiness.found(_NAMESPACES_PART)
            return
        named = "; ".join(
            f"{name}: {why}" for name, why in islice(sorted(self._failing.items()), MOST_TOLD)
        )
        why = f"not written in {len(self._failing)}: {named}"
        self._readiness.degraded(_NAMESPACES_PART, why)


def _is_going(error: Exception) -> bool:
    """Tell whether the namespace is gone, or about to be."""
    reason = getattr(error, "reason", "")
    return isinstance(error, GoneError) or _TERMINATING in str(reason or error)
