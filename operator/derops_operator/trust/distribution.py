"""The certificates of the authorities, carried to who must trust them: one ConfigMap each.

What is told is decided in ``bundles`` and ``reconciling.agent_authority``. This looks, writes, and
says what it could not do. A namespace that fails makes no other wait.
"""

import asyncio
import base64
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import structlog

from derops.observability import Readiness
from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError, Kube, Manifest
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.executor import Executor
from derops_operator.reconciling import agent_authority
from derops_operator.reconciling.assets import Realm
from derops_operator.reconciling.identity import own_requests
from derops_operator.resources.certificates import Request, read_certificate
from derops_operator.resources.manifests import describe
from derops_operator.resources.objects import MANAGED_BY, Kind
from derops_operator.trust.bundles import BadAuthorityError, next_bundle, read_authorities
from derops_operator.workqueue import WorkQueue

SERVER_CA, AGENT_CA = "derops-server-ca", "derops-agent-ca"
"""Names of the ConfigMaps; both have one key."""

KEY = "ca.crt"

LOOK_SECONDS = 5.0
"""How often the file is looked at."""

RECHECK_SECONDS = 30.0
"""How often all ConfigMaps are looked at: within it, what somebody changed is taken back."""

REISSUE_SECONDS = 60.0
"""The least time between two renewals of our own certificate that were not due."""

MOST_TOLD = 5
"""Assets of a namespace that get an Event, and namespaces that are named on /readyz."""

_WORKERS = 4
_SERVER_PART, _AGENT_PART, _NAMESPACES_PART = "server CA", "agent CA", "server CA in namespaces"
_TERMINATING = "because it is being terminated"

_log = structlog.get_logger("authorities")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldConfigMap:
    """A ConfigMap as it was last seen."""

    uid: str
    ours: bool
    """Whether our label is on it."""

    pem: str
    """Empty where it holds anything else than one certificate file."""

    mendable: bool
    """Whether an apply brings it in line; else it must go first."""


def wanted_config_map(namespace: str, name: str, pem: str) -> dict[str, Any]:
    """Return a ConfigMap as it should be; GitOps tools are told that it is none of theirs."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {**MANAGED_BY, "app.kubernetes.io/name": "derops"},
            "annotations": {
                "argocd.argoproj.io/compare-options": "IgnoreExtraneous",
                "argocd.argoproj.io/sync-options": "Prune=false",
                "kustomize.toolkit.fluxcd.io/prune": "disabled",
            },
        },
        "data": {KEY: pem},
    }


def read_held(manifest: Mapping[str, Any]) -> HeldConfigMap:
    """Read a ConfigMap of one of our names; anybody may have written it."""
    metadata, data = manifest["metadata"], manifest.get("data") or {}
    labels = metadata.get("labels") or {}
    alone = set(data) <= {KEY} and not manifest.get("binaryData")
    return HeldConfigMap(
        uid=str(metadata["uid"]),
        ours=all(labels.get(name) == value for name, value in MANAGED_BY.items()),
        pem=str(data.get(KEY, "")) if alone else "",
        mendable=alone and not manifest.get("immutable", False),
    )


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
            events: Told where a namespace has not what its agents need.
            readiness: The same, and what is wrong with an authority.
            take: Given each Certificate that the API server answers with.
            namespace: Ours; nobody else may write in it.
            server_ca_file: Certificate of the server CA, mounted.
            realm: Which issuer signs agents, and who asks it.
            now: Decides what has expired.
            monotonic: Seconds that no clock sets.
        """
        self._kube, self._cache, self._actor = kube, cache, actor
        self._events, self._readiness, self._take = events, readiness, take
        self._namespace, self._file, self._realm = namespace, server_ca_file, realm
        self._now, self._monotonic = now, monotonic
        self._queue: WorkQueue[str] = WorkQueue()
        self._wake = asyncio.Event()
        self._server = ""
        """What namespaces are to hold; empty = not known, nothing is written."""

        self._agent_ca: tuple[str, bytes] = ("", b"")
        """Digest and PEM of the newest that cert-manager told."""

        self._newest_agent: Request | None = None
        self._held: dict[str, HeldConfigMap] = {}
        self._failing: dict[str, str] = {}
        self._seen: tuple[bytes, bytes] | None = None
        self._checked = -float("inf")
        self._renewed: dict[str, float] = {}

    def concern(self, namespace: str) -> None:
        """Hear that assets came to a namespace or went."""
        self._queue.add(namespace)

    def hear(self, request: Request) -> None:
        """Hear of a request to some authority."""
        if request.meta.namespace == self._namespace and not request.asset_name:
            self._wake.set()
        elif agent_authority.signed_agent(request, self._realm.issuer, self._realm.requester):
            newest = self._newest_agent
            if newest is None or _signed_us(request) > _signed_us(newest):
                self._newest_agent = request
                if newest is None or newest.ca_sha256 != request.ca_sha256:
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
        server, agent = await self._find_server_ca(), await self._find_agent_ca()
        due = self._monotonic() >= self._checked + RECHECK_SECONDS
        if not due and (server, agent) == self._seen:
            return
        await self._compare(await self._keep_own(SERVER_CA, server))
        await self._keep_own(AGENT_CA, agent)
        self._seen, self._checked = (server, agent), self._monotonic()

    async def _find_server_ca(self) -> bytes:
        """Return the file; empty where it is none, which is told."""
        try:
            found = await asyncio.to_thread(self._file.read_bytes)
            self._measure("server", found)
        except (OSError, BadAuthorityError) as error:
            why = f"{self._file}: {error}; agents keep what they were told before"
            self._readiness.degraded(_SERVER_PART, why)
            return b""
        self._note_expiry(_SERVER_PART, found)
        return found

    async def _find_agent_ca(self) -> bytes:
        """Return what cert-manager said last; empty where it has not, which is told."""
        try:
            found = await self._ask_agent_ca()
            self._measure("agent", found)
        except Exception as error:  # whatever it is, the server CA does not wait for it
            why = f"{describe(error)}; the gateway keeps what it was told before"
            self._readiness.degraded(_AGENT_PART, why)
            return b""
        self._note_expiry(_AGENT_PART, found)
        return found

    async def _ask_agent_ca(self) -> bytes:
        wanted = agent_authority.wanted_trust_certificate(self._namespace, self._realm.issuer)
        requests = self._cache.requests_of(self._namespace, "")
        due = self._monotonic() >= self._checked + RECHECK_SECONDS
        if due or not requests:
            self._take(Kind.CERTIFICATE, await self._kube.apply(Kind.CERTIFICATE, wanted))
        certificate = self._cache.certificate(self._namespace, agent_authority.TRUST_CERTIFICATE)
        own = own_requests(requests, certificate, self._realm.requester)
        for request in agent_authority.to_approve(own, self._realm.issuer):
            await self._actor.approve(request, "it tells the operator who the agent CA is")
        told = agent_authority.telling(own, self._realm.issuer)
        if told is None:
            renewable = certificate is not None and agent_authority.has_nothing_to_come(
                certificate, own
            )
        else:
            renewable = agent_authority.is_outdated(told, self._newest_agent) or (
                due and agent_authority.is_reissued(told, await self._read_authority())
            )
        if renewable:
            why = "the agent CA was issued again, or no request tells who it is"
            await self.renew(agent_authority.TRUST_CERTIFICATE, "AuthorityUnknown", why)
        if told is None:
            raise BadAuthorityError(
                f"cert-manager has not signed Certificate {self._namespace}/"
                f"{agent_authority.TRUST_CERTIFICATE} yet: see its Events"
            )
        digest, pem = self._agent_ca
        if digest != told.ca_sha256 or not pem:
            pem = await self._read_ca(told)
            self._agent_ca = (told.ca_sha256, pem)
        return pem

    async def _read_authority(self) -> Manifest | None:
        """Return the Certificate of the agent CA; None where there is none by that name."""
        namespace = agent_authority.namespace_of(self._realm.requester)
        if not namespace:
            return None
        try:
            return await self._kube.read(
                Kind.CERTIFICATE, namespace, agent_authority.AGENT_AUTHORITY
            )
        except GoneError:
            return None

    async def _read_ca(self, told: Request) -> bytes:
        manifest = await self._kube.read(Kind.REQUEST, told.meta.namespace, told.meta.name)
        said = manifest.get("status", {}).get("ca", "")
        if not said:
            raise BadAuthorityError(
                f"ClusterIssuer {self._realm.issuer} does not say what its CA is"
            )
        return base64.b64decode(said)

    async def renew(self, name: str, reason: str, message: str) -> None:
        """Have a Certificate of our namespace issued again, once a minute at most."""
        if self._monotonic() < self._renewed.get(name, -float("inf")) + REISSUE_SECONDS:
            return
        self._renewed[name] = self._monotonic()
        # What is known of it may be minutes old, and a status is patched by version.
        fresh = await self._kube.read(Kind.CERTIFICATE, self._namespace, name)
        self._take(Kind.CERTIFICATE, fresh)
        if not read_certificate(fresh, 0).is_true("Issuing"):
            await self._actor.reissue(self._namespace, name, reason, message)

    async def _keep_own(self, name: str, current: bytes) -> str:
        """Keep a ConfigMap in our own namespace; return what it holds. It is the only memory."""
        held = await self._read(self._namespace, name)
        earlier = held.pem if held is not None else ""
        if not current:
            return earlier
        bundle = next_bundle(current, earlier, self._now())
        if bundle.left_out:
            _log.warning("authorities.left_out", name=name, certificates=bundle.left_out)
        if held is None or not held.ours or held.pem != bundle.pem or not held.mendable:
            await self._write(self._namespace, name, bundle.pem, held)
            _log.info("authorities.told", name=name, authorities=bundle.authorities)
        return bundle.pem

    async def _compare(self, pem: str) -> None:
        """Queue each namespace whose ConfigMap is not as it should be."""
        self._server = pem
        found = {}
        async for manifest in self._kube.config_maps(SERVER_CA):
            found[str(manifest["metadata"]["namespace"])] = read_held(manifest)
        self._held = found
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
            self._held[namespace] = await self._write(namespace, SERVER_CA, self._server, held)
        elif held is not None:
            self._held.pop(namespace, None)
            await self._delete(namespace, SERVER_CA, held)

    async def _write(
        self, namespace: str, name: str, pem: str, held: HeldConfigMap | None
    ) -> HeldConfigMap:
        if held is not None and not held.mendable:
            await self._delete(namespace, name, held)
        wanted = wanted_config_map(namespace, name, pem)
        applied = read_held(await self._kube.apply_config_map(wanted))
        if not applied.mendable:  # it was there, unseen, with more in it
            await self._delete(namespace, name, applied)
            applied = read_held(await self._kube.apply_config_map(wanted))
        return applied

    async def _delete(self, namespace: str, name: str, held: HeldConfigMap) -> None:
        try:
            await self._kube.delete_config_map(namespace, name, held.uid)
        except GoneError:
            return

    async def _see_anew(self, namespace: str) -> None:
        """Look at one that somebody else changed meanwhile, then decide again."""
        try:
            held = await self._read(namespace, SERVER_CA)
        except Exception as error:
            self._note_failure(namespace, describe(error))
        else:
            self._held.pop(namespace, None)
            if held is not None:
                self._held[namespace] = held
        self._queue.add_failed(namespace)

    async def _read(self, namespace: str, name: str) -> HeldConfigMap | None:
        try:
            return read_held(await self._kube.read_config_map(namespace, name))
        except GoneError:
            return None

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

    def _measure(self, authority: str, pem: bytes) -> None:
        ends = read_authorities(pem)[0].not_valid_after_utc
        metrics.AUTHORITY_EXPIRY.labels(authority=authority).set(ends.timestamp())

    def _note_expiry(self, part: str, pem: bytes) -> None:
        ends = read_authorities(pem)[0].not_valid_after_utc
        if ends <= self._now():
            self._readiness.degraded(part, f"expired on {ends:%Y-%m-%d %H:%M} UTC: renew it")
        else:
            self._readiness.found(part)


def _signed_us(request: Request) -> int:
    return request.issued.not_before_us if request.issued is not None else 0


def _is_going(error: Exception) -> bool:
    """Tell whether the namespace is gone, or about to be."""
    reason = getattr(error, "reason", "")
    return isinstance(error, GoneError) or _TERMINATING in str(reason or error)
