"""Listing everything: at the start, and every few minutes against what watches never tell.

kopf does not report objects that vanished while it was disconnected.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog

from derops_operator import metrics
from derops_operator.cache import Cache
from derops_operator.facts import Key, Kind
from derops_operator.kube import GoneError, Kube

_log = structlog.get_logger("resync")

# Dispatches first: what was in flight then had its asset, which the later list must show.
_ORDER = (Kind.DISPATCH, Kind.ASSET, Kind.CERTIFICATE, Kind.REQUEST)


class Resync:
    """Brings the cache in line with complete lists."""

    def __init__(
        self,
        kube: Kube,
        cache: Cache,
        take: Callable[[Kind, Mapping[str, Any]], None],
        drop: Callable[[Key], None],
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._take = take
        self._drop = drop
        self._finished = time.monotonic()

    def is_overdue(self, period_seconds: float) -> bool:
        """Tell whether three periods passed without a complete list."""
        return time.monotonic() > self._finished + 3 * period_seconds + 60

    async def run(self) -> None:
        """List all kinds; objects that are known and not listed are asked for one by one."""
        for kind in _ORDER:
            before = set(self._cache.keys(kind))
            listed = set()
            async for manifest in self._kube.list_all(kind):
                metadata = manifest["metadata"]
                listed.add(Key(kind, metadata["namespace"], metadata["name"]))
                self._take(kind, manifest)
            for key in before - listed:
                await self._check(key)
        self._finished = time.monotonic()
        metrics.RESYNC_TIMESTAMP.set_to_current_time()

    async def _check(self, key: Key) -> None:
        try:
            self._take(key.kind, await self._kube.read(key.kind, key.namespace, key.name))
        except GoneError:
            self._drop(key)
            _log.info("object.vanished", kind=key.kind.value, name=key.name)
