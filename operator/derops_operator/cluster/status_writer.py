"""Writing status: only what changed, only where it matters, never faster than allowed.

Transitions that land together become one write. What was written is remembered with the version it
made, so that nothing is written twice while the watch lags behind.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from derops.lifecycle import Phase
from derops_operator import metrics
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError, Manifest
from derops_operator.cluster.ports import Api
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.objects import Kind, ObjectKey

COALESCE_SECONDS = 0.08
"""How long a status that is not an end waits for the next transition."""

WRITES_PER_SECOND = 50.0
BURST = 100.0

_PASSING = {
    "timeline": {"reportedAt", "clockOffsetMilliseconds"},
    "execution": {"activeSeconds", "withinToleranceSeconds", "deliveredWattHours"},
}


class TokenBucket:
    """Lets ``rate`` calls a second through, and ``burst`` at once."""

    def __init__(
        self, rate: float, burst: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate = rate
        self._burst = burst
        self._clock = clock
        self._tokens = burst
        self._filled = clock()

    def reserve(self) -> float:
        """Take a token, on credit if there is none; return the seconds to wait before using it."""
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)

    async def take(self) -> None:
        """Wait for a token."""
        await asyncio.sleep(self.reserve())


def merge_patch(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch (RFC 7386) that makes ``wanted`` of ``stored``."""
    patch: dict[str, Any] = {name: None for name in stored if name not in wanted}
    for name, value in wanted.items():
        known = stored.get(name)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            inner = merge_patch(known, value)
            if inner:
                patch[name] = inner
        elif name not in stored or known != value:
            patch[name] = value
    return patch


def is_worth_writing(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Tell whether a status is to be written.

    Counters that run while a dispatch is active are not; they come along with the next transition.
    """
    patch = merge_patch(stored, wanted)
    if not patch:
        return False
    phase = wanted.get("phase")
    if phase is None or Phase(phase).terminal:
        return True
    for field, passing in _PASSING.items():
        if isinstance(patch.get(field), Mapping) and patch[field].keys() <= passing:
            del patch[field]
    return bool(patch)


class _Written(NamedTuple):
    uid: str
    status: Mapping[str, Any]
    resource_version: str


class StatusWriter:
    """Writes the status of one object at a time; the caller decides when."""

    def __init__(self, api: Api, bucket: TokenBucket | None = None) -> None:
        self._api = api
        self._bucket = bucket or TokenBucket(WRITES_PER_SECOND, BURST)
        self._written: dict[ObjectKey, _Written] = {}

    async def write(
        self, kind: Kind, fact: Asset | Dispatch, wanted: Mapping[str, Any]
    ) -> Manifest | None:
        """Make the stored status ``wanted``; return the object as it is then, None = no write.

        Raises:
            ChangedMeanwhileError: The object is not the version that was decided on.
            GoneError: It was deleted.
        """
        key = ObjectKey(kind, fact.meta.namespace, fact.meta.name)
        last = self._written.get(key)
        if last == _Written(fact.meta.uid, wanted, fact.meta.resource_version):
            return None
        patch = merge_patch(fact.status, wanted)
        if not patch:
            return None
        await self._bucket.take()
        result = "failed"
        try:
            manifest = await self._api.patch_status(kind, fact.meta, patch)
            result = "written"
        except ChangedMeanwhileError:
            result = "conflict"
            raise
        except GoneError:
            result = "gone"
            self.forget(key)
            raise
        finally:
            metrics.STATUS_WRITES.labels(kind=kind.value, result=result).inc()
        version = manifest["metadata"]["resourceVersion"]
        self._written[key] = _Written(fact.meta.uid, dict(wanted), version)
        return manifest

    def forget(self, key: ObjectKey) -> None:
        """Forget an object that is gone."""
        self._written.pop(key, None)
