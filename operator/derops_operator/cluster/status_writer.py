"""Writing status: only what changed, only where it matters, never faster than allowed.

Submission never waits here: status has its own queue and workers. Those of assets, which links and
devices change as often as they like, take only what those of dispatches leave of the rate.
Transitions that land together become one write. What was written is remembered with the version
that it made, so that a field which the API server drops is not written for ever.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import structlog

from derops.lifecycle import Phase
from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError, Manifest
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.ports import Api, Queue
from derops_operator.cluster.token_bucket import TokenBucket
from derops_operator.reconciling.identity import early_issuance
from derops_operator.reconciling.stages import (
    LATE_REVERT_SECONDS,
    measure_overrun,
    measure_stages,
)
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.objects import Kind, ObjectKey

COALESCE_SECONDS = 0.08
"""How long a status that is not an end waits for the next transition."""

WRITES_PER_SECOND = 50.0
BURST = 100.0

DISPATCH_BURST = 50.0
"""Writes that dispatches may have at once, however many assets wait for theirs."""

ASSETS_PER_SECOND = 10.0
"""Writes that assets have however many dispatches wait for theirs."""

_PASSING = {
    "timeline": {"reportedAt", "clockOffsetMilliseconds"},
    "execution": {"activeSeconds", "withinToleranceSeconds", "deliveredWattHours"},
}

_log = structlog.get_logger("publishing")


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


class _Status(NamedTuple):
    """What the status of one object is to be, or was made."""

    uid: str
    status: Mapping[str, Any]
    basis: Mapping[str, Any] | None = None
    """The last status that is no end: later decisions build on it before it is stored."""

    version: str = ""
    """The version of the object that the write made; empty = it is still to be written."""


class StatusWriter:
    """The status of each object, from the decision until it is stored."""

    def __init__(
        self,
        api: Api,
        bucket: TokenBucket,
        cache: Cache,
        events: EventWriter,
        take: Callable[[Kind, Mapping[str, Any]], None],
        queue: Queue,
    ) -> None:
        """Make the writer; it does nothing by itself.

        Args:
            api: Where statuses are written.
            bucket: How fast.
            cache: What is stored, as last heard.
            events: Told what was stored.
            take: Given the object that a write returns.
            queue: Given the keys that are to be published.
        """
        self._api = api
        self._bucket = bucket
        self._cache = cache
        self._events = events
        self._take = take
        self._queue = queue
        self._statuses: dict[ObjectKey, _Status] = {}

    def forget(self, key: ObjectKey) -> None:
        """Forget an object that is gone."""
        self._statuses.pop(key, None)

    def with_basis(self, key: ObjectKey, dispatch: Dispatch) -> Dispatch:
        """Return a dispatch with the status that it is about to have, unless that is an end."""
        wanted = self._unwritten(key)
        if wanted is None or wanted.uid != dispatch.meta.uid or wanted.basis is None:
            return dispatch
        return dispatch if dispatch.phase.terminal else replace(dispatch, status=wanted.basis)

    def want(self, key: ObjectKey, status: dict[str, Any]) -> None:
        """Have a status written: an end at once, anything else with what follows it closely."""
        fact = self._cache.fact(key)
        if not isinstance(fact, Asset | Dispatch) or not is_worth_writing(fact.status, status):
            self.forget(key)
            return
        meta, known = fact.meta, self._statuses.get(key)
        if known == _Status(meta.uid, status, version=meta.resource_version):
            return
        ended = "phase" in status and Phase(status["phase"]).terminal
        basis = status if not ended else (known.basis if known is not None else None)
        self._statuses[key] = _Status(meta.uid, status, basis)
        if ended:
            self._queue.add(key)
        else:
            self._queue.add_after(key, COALESCE_SECONDS)

    async def publish(self, key: ObjectKey) -> None:
        """Write the wanted status of one object, if that still makes a difference.

        Raises:
            ChangedMeanwhileError: The object is not the version that was decided on.
            GoneError: It was deleted.
        """
        wanted, fact = self._unwritten(key), self._cache.fact(key)
        if wanted is None or not isinstance(fact, Asset | Dispatch):
            return
        # What cannot be read is decided anew once it can be.
        stale = key in self._cache.unreadable or wanted.uid != fact.meta.uid
        patch = (
            {}
            if stale or _has_ended_otherwise(fact, wanted)
            else merge_patch(fact.status, wanted.status)
        )
        if not patch:
            self.forget(key)
            return
        manifest = await self._write(key.kind, fact, patch)
        if self._statuses.get(key) is wanted:
            version = manifest["metadata"]["resourceVersion"]
            self._statuses[key] = _Status(wanted.uid, wanted.status, version=version)
        self._tell(key, fact, wanted.status)
        self._take(key.kind, manifest)

    def _unwritten(self, key: ObjectKey) -> _Status | None:
        known = self._statuses.get(key)
        return known if known is not None and not known.version else None

    async def _write(
        self, kind: Kind, fact: Asset | Dispatch, patch: Mapping[str, Any]
    ) -> Manifest:
        if kind is Kind.DISPATCH:
            await self._bucket.take()
        else:
            await self._bucket.take_spare(DISPATCH_BURST, ASSETS_PER_SECOND)
        result = "failed"
        try:
            manifest = await self._api.patch_status(kind, fact.meta, patch)
            result = "written"
        except ChangedMeanwhileError:
            result = "conflict"
            raise
        except GoneError:
            result = "gone"
            raise
        finally:
            metrics.STATUS_WRITES.labels(kind=kind.value, result=result).inc()
        return manifest

    def _tell(self, key: ObjectKey, before: Asset | Dispatch, status: Mapping[str, Any]) -> None:
        """Tell in Events, and count, what is new in a status that was stored."""
        if isinstance(before, Dispatch):
            after = replace(before, status=status)
            self._events.post_transitions(before, after)
            self._count_stages(before, after)
            if after.phase.terminal and not before.phase.terminal:
                metrics.count_ending(after.phase, after.reason)
            if after.phase is not before.phase or not before.status:
                _log.info(
                    "dispatch.ended" if after.phase.terminal else "status.stored",
                    **after.log_fields,
                    phase=str(after.phase),
                    reason=after.reason,
                )
        else:
            self._tell_asset(before, replace(before, status=status))

    def _count_stages(self, before: Dispatch, after: Dispatch) -> None:
        asset = self._cache.asset(after.meta.namespace, after.asset_name)
        kind = asset.type if asset is not None else "Other"
        for stage, seconds in measure_stages(before.status, after.status).items():
            metrics.STAGE_SECONDS.labels(stage, kind).observe(seconds)
        overrun_seconds = measure_overrun(before.status, after.status)
        if overrun_seconds is not None:
            metrics.OVERRUN_SECONDS.inc(overrun_seconds)
            metrics.LATE_REVERTS.inc(overrun_seconds > LATE_REVERT_SECONDS)

    def _tell_asset(self, before: Asset, after: Asset) -> None:
        self._events.post_release(before, after)
        self._events.post_quarantine(before, after)
        self._events.post_device(before, after)
        requests = self._cache.requests_of(after.meta.namespace, after.meta.name)
        if early := early_issuance(before.identity, after.identity, requests):
            self._events.post_early_issuance(after.meta, early)


def _has_ended_otherwise(fact: Asset | Dispatch, wanted: _Status) -> bool:
    """Tell whether an end was stored since this was decided: a dispatch ends once."""
    if not isinstance(fact, Dispatch) or not fact.phase.terminal:
        return False
    return replace(fact, status=wanted.status).history != fact.history
