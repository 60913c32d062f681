"""Objects that cannot be read or worked on: each version is told once, in log, Event and probe."""

from collections import Counter
from itertools import islice

import structlog

from derops.observability import Readiness
from derops_operator import metrics
from derops_operator.cluster.events import EventWriter
from derops_operator.resources.objects import Kind, Meta, ObjectKey

_NAMED = 5

_log = structlog.get_logger("reading")


class Troubles:
    """The objects that are in trouble now. None of them makes another wait."""

    def __init__(self, events: EventWriter, readiness: Readiness) -> None:
        self._events = events
        self._readiness = readiness
        self._told: dict[ObjectKey, tuple[str, str]] = {}
        self._counts: Counter[Kind] = Counter()

    def tell(
        self, kind: Kind, meta: Meta, problem: str, failure: BaseException | None = None
    ) -> None:
        """Log, count and say in an Event what is wrong with an object.

        Args:
            kind: Of the object.
            meta: Which one, in which version.
            problem: What is wrong, in one short line.
            failure: Given where it could be read and the work on it failed.
        """
        key, version = ObjectKey(kind, meta.namespace, meta.name), (meta.uid, meta.resource_version)
        if self._told.get(key) == version:
            return
        self._counts[kind] += key not in self._told
        self._told[key] = version
        _log.error(
            "object.unreadable" if failure is None else "object.not_worked_on",
            kind=kind.value,
            namespace=meta.namespace,
            name=meta.name,
            why=problem,
            exc_info=failure,
        )
        note = f"it cannot be {'read' if failure is None else 'worked on'}: {problem}"
        self._events.post(kind, meta, warning=True, reason="Unreadable", note=note)
        self._show(kind)

    def forget(self, key: ObjectKey) -> None:
        """Say that nothing is wrong with an object any more, or that it is gone."""
        if self._told.pop(key, None) is not None:
            self._counts[key.kind] -= 1
            self._show(key.kind)

    def _show(self, kind: Kind) -> None:
        metrics.UNREADABLE.labels(kind=kind.value).set(self._counts[kind])
        if not self._told:
            self._readiness.found("objects")
            return
        names = [f"{key.kind} {key.namespace}/{key.name}" for key in islice(self._told, _NAMED)]
        more = f" and {len(self._told) - _NAMED} more" if len(self._told) > _NAMED else ""
        self._readiness.degraded("objects", f"cannot read {', '.join(names)}{more}")
