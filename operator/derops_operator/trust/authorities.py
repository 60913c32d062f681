"""Where the authorities are seen: the server CA in a file, the agent CA at cert-manager."""

import asyncio
import base64
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from derops.observability import Readiness
from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import GoneError, Kube, Manifest
from derops_operator.cluster.executor import Executor
from derops_operator.reconciling import agent_authority
from derops_operator.reconciling.identity import Realm, own_requests
from derops_operator.resources.certificates import Request, read_certificate
from derops_operator.resources.manifests import describe
from derops_operator.resources.objects import Kind
from derops_operator.trust.bundles import BadAuthorityError, read_authorities

REISSUE_SECONDS = 60.0
"""The least time between two renewals of our own certificate that were not due."""

_SERVER_PART, _AGENT_PART = "server CA", "agent CA"


class Authorities:
    """Finds the certificates of both authorities; tells on /readyz what is wrong with one."""

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        actor: Executor,
        readiness: Readiness,
        take: Callable[[Kind, Mapping[str, Any]], None],
        *,
        namespace: str,
        server_ca_file: Path,
        realm: Realm,
        now: Callable[[], datetime],
        monotonic: Callable[[], float],
    ) -> None:
        """Make it.

        Args:
            kube: The API server.
            cache: The requests of our own certificate.
            actor: Approves and renews.
            readiness: Told what is wrong with an authority.
            take: Given each Certificate that the API server answers with.
            namespace: Ours; nobody else may write in it.
            server_ca_file: Certificate of the server CA, mounted.
            realm: Which issuer signs agents, and who asks it.
            now: Decides what has expired.
            monotonic: Seconds that no clock sets.
        """
        self._kube, self._cache, self._actor = kube, cache, actor
        self._readiness, self._take = readiness, take
        self._namespace, self._file, self._realm = namespace, server_ca_file, realm
        self._now, self._monotonic = now, monotonic
        self._agent_ca: tuple[str, bytes] = ("", b"")
        """Digest and PEM of the newest that cert-manager told."""

        self._newest_agent: Request | None = None
        self._renewed: dict[str, float] = {}

    def hear(self, request: Request) -> bool:
        """Hear of a request to some authority; tell whether it makes a look worth while."""
        if request.meta.namespace == self._namespace and not request.asset_name:
            return True
        if not agent_authority.signed_agent(request, self._realm.issuer, self._realm.requester):
            return False
        newest = self._newest_agent
        if newest is not None and _signed_us(request) <= _signed_us(newest):
            return False
        self._newest_agent = request
        return newest is None or newest.ca_sha256 != request.ca_sha256

    async def find_server_ca(self) -> bytes:
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

    async def find_agent_ca(self, *, due: bool) -> bytes:
        """Return what cert-manager said last; empty where it has not, which is told.

        Args:
            due: Whether all is to be looked at again, unchanged or not.
        """
        try:
            found = await self._ask_agent_ca(due=due)
            self._measure("agent", found)
        except Exception as error:  # whatever it is, the server CA does not wait for it
            why = f"{describe(error)}; the gateway keeps what it was told before"
            self._readiness.degraded(_AGENT_PART, why)
            return b""
        self._note_expiry(_AGENT_PART, found)
        return found

    async def _ask_agent_ca(self, *, due: bool) -> bytes:
        wanted = agent_authority.wanted_trust_certificate(self._namespace, self._realm.issuer)
        requests = self._cache.requests_of(self._namespace, "")
        if due or not requests:
            self._take(Kind.CERTIFICATE, await self._kube.apply(Kind.CERTIFICATE, wanted))
        certificate = self._cache.certificate(self._namespace, agent_authority.TRUST_CERTIFICATE)
        own = own_requests(requests, certificate, self._realm.requester)
        for request in agent_authority.to_approve(own, self._realm.issuer):
            await self._actor.approve(request, "it tells the operator who the agent CA is")
        told = agent_authority.telling(own, self._realm.issuer)
        if told is None:
            renews = certificate is not None and agent_authority.has_nothing_to_come(
                certificate, own
            )
        else:
            renews = await self._is_overtaken(told, due=due)
        if renews:
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

    async def _is_overtaken(self, told: Request, *, due: bool) -> bool:
        """Tell whether the agent CA was issued again since a request told who it is."""
        if agent_authority.is_outdated(told, self._newest_agent):
            return True
        return due and agent_authority.is_reissued(told, await self._read_authority())

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
