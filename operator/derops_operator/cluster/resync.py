"""Listing everything: at the start, and every few minutes against what watches never tell.

kopf does not report objects that vanished while it was disconnected.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from kubernetes.aio.client.exceptions import ApiException

from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import GoneError, Kube
from derops_operator.resources.manifests import identify
from derops_operator.resources.objects import Kind, ObjectKey

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
        drop: Callable[[ObjectKey], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._cache = cache
        self._take = take
        self._drop = drop
        self._finished = clock()
        self._clock = clock
        self._answering_since: float | None = None

    def is_overdue(self, within_seconds: float) -> bool:
        """Tell whether no list was complete for so long, although the API server answers.

        While it does not answer, a restart helps nobody.
        """
        since = self._answering_since
        return since is not None and self._clock() > max(since, self._finished) + within_seconds

    async def run(self) -> None:
        """List all kinds; objects that are known and not listed are asked for one by one."""
        try:
            for kind in _ORDER:
                await self._list(kind)
        except Exception as error:
            if _is_answer(error):
                self._note_answer()
            else:
                self._answering_since = None
            raise
        self._finished = self._clock()
        metrics.RESYNC_TIMESTAMP.set_to_current_time()

    async def _list(self, kind: Kind) -> None:
        before = set(self._cache.keys(kind))
        before |= {key for key in self._cache.unreadable if key.kind is kind}
        async for manifest in self._kube.list_all(kind):
            self._note_answer()
            identity = identify(kind, manifest)
            if identity is not None:
                before.discard(identity[0])
            self._take(kind, manifest)
        self._note_answer()
        for key in before:
            await self._check(key)

    def _note_answer(self) -> None:
        if self._answering_since is None:
            self._answering_since = self._clock()

    async def _check(self, key: ObjectKey) -> None:
        try:
            self._take(key.kind, await self._kube.read(key.kind, key.namespace, key.name))
        except GoneError:
            self._drop(key)
            _log.info(
                "object.vanished", kind=key.kind.value, namespace=key.namespace, name=key.name
            )


def _is_answer(error: Exception) -> bool:
    """Tell whether an API server that works said this: it is not overloaded, nor without etcd."""
    if isinstance(error, ApiException):
        return 400 <= (error.status or 0) < 500 and error.status != 429
    return isinstance(error, GoneError)
