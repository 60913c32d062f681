"""From a wanted status to a stored one: when to write, and what to say after.

Submission never waits here: status has its own queue and workers.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import structlog

from derops.lifecycle import Phase
from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.ports import Queue
from derops_operator.cluster.status_writer import COALESCE_SECONDS, StatusWriter, is_worth_writing
from derops_operator.reconciling.identity import early_issuance
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.objects import Kind, ObjectKey

_log = structlog.get_logger("publishing")


class _Wanted(NamedTuple):
    uid: str
    status: Mapping[str, Any]
    basis: Mapping[str, Any] | None
    """The last status that is no end: later decisions build on it before it is stored."""


class Publisher:
    """The status of all objects, as wanted and not yet stored."""

    def __init__(
        self,
        cache: Cache,
        writer: StatusWriter,
        events: EventWriter,
        take: Callable[[Kind, Mapping[str, Any]], None],
        queue: Queue,
    ) -> None:
        self._queue = queue
        self._cache = cache
        self._writer = writer
        self._events = events
        self._take = take
        self._wanted: dict[ObjectKey, _Wanted] = {}

    def forget(self, key: ObjectKey) -> None:
        """Forget an object that is gone."""
        self._wanted.pop(key, None)
        self._writer.forget(key)

    def with_basis(self, key: ObjectKey, dispatch: Dispatch) -> Dispatch:
        """Return a dispatch with the status that it is about to have, unless that is an end."""
        wanted = self._wanted.get(key)
        if wanted is None or wanted.uid != dispatch.meta.uid or wanted.basis is None:
            return dispatch
        return dispatch if dispatch.phase.terminal else replace(dispatch, status=wanted.basis)

    def want(self, key: ObjectKey, status: dict[str, Any]) -> None:
        """Have a status written: an end at once, anything else with what follows it closely."""
        fact = self._cache.fact(key)
        if not isinstance(fact, Asset | Dispatch) or not is_worth_writing(fact.status, status):
            self._wanted.pop(key, None)
            return
        ended = "phase" in status and Phase(status["phase"]).terminal
        earlier = self._wanted.get(key)
        basis = status if not ended else (earlier.basis if earlier is not None else None)
        self._wanted[key] = _Wanted(fact.meta.uid, status, basis)
        if ended:
            self._queue.add(key)
        else:
            self._queue.add_after(key, COALESCE_SECONDS)

    async def publish(self, key: ObjectKey) -> None:
        """Write the wanted status of one object, if that still makes a difference."""
        wanted, fact = self._wanted.get(key), self._cache.fact(key)
        if wanted is None or not isinstance(fact, Asset | Dispatch):
            return
        if key in self._cache.unreadable:  # it is decided anew once it can be read
            self._wanted.pop(key, None)
            return
        if wanted.uid != fact.meta.uid:
            self._wanted.pop(key, None)
            return
        frozen = isinstance(fact, Dispatch) and fact.phase.terminal
        if frozen and wanted.status["history"] != fact.status.get("history"):
            # Decided before that end was stored: it ends once.
            self._wanted.pop(key, None)
            return
        manifest = await self._writer.write(key.kind, fact, wanted.status)
        if self._wanted.get(key) is wanted:
            self._wanted.pop(key, None)
        if manifest is None:
            return
        if isinstance(fact, Dispatch):
            self._tell_transition(fact, wanted.status)
        else:
            self._tell_asset(key, fact, wanted.status)
        self._take(key.kind, manifest)

    def _tell_asset(self, key: ObjectKey, fact: Asset, status: Mapping[str, Any]) -> None:
        self._events.post_release(fact.meta, fact.status, status)
        self._events.post_quarantine(fact.meta, fact.status, status)
        self._events.post_device(fact.meta, fact.status, status)
        early = early_issuance(
            fact.status.get("identity", {}),
            status.get("identity", {}),
            self._cache.requests_of(key.namespace, key.name),
        )
        if early:
            self._events.post_early_issuance(fact.meta, early)

    def _tell_transition(self, fact: Dispatch, status: Mapping[str, Any]) -> None:
        self._events.post_transitions(fact.meta, fact.status, status)
        if Phase(status["phase"]).terminal and not fact.phase.terminal:
            metrics.count_ending(status["phase"], status["reason"])
            _log.info(
                "dispatch.ended",
                namespace=fact.meta.namespace,
                name=fact.meta.name,
                phase=status["phase"],
                reason=status["reason"],
            )
