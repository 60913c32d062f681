"""Tells in the ConfigMap ``derops-installation`` what is broken for all assets.

Like a lease it is renewed also where nothing changes. While the API server is away, it grows old
there, and whoever reads it sees that.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from derops.installation import CONFIG_MAP, KEY, RENEWED_EVERY_SECONDS
from derops.observability import Readiness
from derops_operator.cluster.client import TRANSIENT, ChangedMeanwhileError, GoneError, Kube
from derops_operator.gateways.replicas import Fleet
from derops_operator.reconciling.installation import (
    Gateways,
    ReplicaView,
    is_settled,
    judge_installation,
    news_of,
    read_conditions,
)
from derops_operator.resources.config_maps import own_config_map
from derops_operator.resources.instants import format_second

WRITTEN_EVERY_SECONDS = 10.0
"""How soon after one write, or one try, the next may come, whatever replicas say."""

MAX_READ_BYTES = 64 * 1024
"""Of what an earlier operator wrote, or anybody."""

_LOOK_SECONDS = 1.0
_INVALID = 422
_PART = "status of the installation"

_log = structlog.get_logger("installation")


class InstallationConfigMap:
    """The ConfigMap at the API server. What fails there is raised."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self._kube, self._namespace = kube, namespace

    async def read(self) -> object:
        """Return the conditions that it has, whoever wrote them; None = there are none."""
        try:
            manifest = await self._kube.read_config_map(self._namespace, CONFIG_MAP)
        except GoneError:
            return None
        text = (manifest.get("data") or {}).get(KEY, "")
        if len(text) > MAX_READ_BYTES:
            return None
        with suppress(ValueError, RecursionError):
            found = json.loads(text)
            return found.get("conditions") if isinstance(found, dict) else None
        return None

    async def write(self, text: str) -> None:
        """Have it hold ``text`` and nothing else, whatever somebody made of it."""
        wanted = own_config_map(self._namespace, CONFIG_MAP, {KEY: text})
        try:
            applied = await self._kube.apply_config_map(wanted)
        except ApiException as refused:
            if refused.status != _INVALID:  # of one that is immutable it says so
                raise
            applied = await self._kube.read_config_map(self._namespace, CONFIG_MAP)
            applied["immutable"] = True
        if _is_altered(applied):
            with suppress(GoneError):
                uid = str(applied["metadata"]["uid"])
                await self._kube.delete_config_map(self._namespace, CONFIG_MAP, uid)
            await self._kube.apply_config_map(wanted)


class InstallationTeller:
    """Judges each second, and writes on a change and to renew."""

    def __init__(
        self,
        kube: Kube,
        fleet: Fleet,
        readiness: Readiness,
        namespace: str,
        now_us: Callable[[], int],
    ) -> None:
        """Make it; ``run`` works.

        Args:
            kube: The API server.
            fleet: What the gateway replicas say.
            readiness: Told whether it can be written.
            namespace: The operator's.
            now_us: The clock.
        """
        self._config_map = InstallationConfigMap(kube, namespace)
        self._fleet, self._readiness, self._now_us = fleet, readiness, now_us
        self._start_us = now_us()
        self._conditions: list[dict[str, Any]] = []
        self._written: list[tuple[str, ...]] | None = None
        self._tried_at = self._written_at = -RENEWED_EVERY_SECONDS * 10.0
        self._is_read = False

    async def run(self) -> None:
        """Tell until cancelled, whatever fails."""
        self._start_us = self._now_us()
        while True:
            try:
                if await self.turn(time.monotonic()):
                    self._readiness.found(_PART)
            except (*TRANSIENT, GoneError, ChangedMeanwhileError) as error:
                self._readiness.degraded(_PART, f"{CONFIG_MAP}: {str(error)[:200]}")
            except Exception as error:
                self._readiness.degraded(_PART, f"{CONFIG_MAP}: {type(error).__name__}")
                _log.exception("installation.not_told")
            await asyncio.sleep(_LOOK_SECONDS)

    async def turn(self, now_seconds: float) -> bool:
        """Judge, and write if that is due; tell whether it was written.

        Args:
            now_seconds: By a clock that is not set.
        """
        if now_seconds - self._tried_at < WRITTEN_EVERY_SECONDS:
            return False
        now_us, gateways = self._now_us(), self._view()
        if not is_settled(gateways, now_us):
            return False
        if not self._is_read:
            self._tried_at = now_seconds
            self._conditions = read_conditions(await self._config_map.read(), now_us)
            self._is_read = True
        self._conditions = judge_installation(gateways, self._conditions, now_us)
        news = news_of(self._conditions)
        is_old = now_seconds - self._written_at >= RENEWED_EVERY_SECONDS
        if news == self._written and not is_old:
            return False
        self._tried_at = now_seconds
        content = {"observedAt": format_second(now_us), "conditions": self._conditions}
        await self._config_map.write(json.dumps(content, indent=1, ensure_ascii=False))
        self._written, self._written_at = news, now_seconds
        return True

    def _view(self) -> Gateways:
        return Gateways(
            start_us=self._start_us,
            expected=self._fleet.expected,
            replicas=[
                ReplicaView(
                    name=each.name,
                    connected=each.connected,
                    changed_us=each.changed_us,
                    links=self._fleet.headend.of(each.name),
                )
                for each in self._fleet.replicas.values()
            ],
        )


def _is_altered(manifest: Mapping[str, Any]) -> bool:
    """Tell whether a ConfigMap holds more than ours, or can no longer be changed."""
    data = manifest.get("data") or {}
    return bool(manifest.get("immutable") or manifest.get("binaryData") or set(data) - {KEY})
