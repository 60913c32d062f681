"""Counts over all assets and dispatches that the caller may see. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from derops.data_path import CONDITION
from derops_cli.evidence import Missing
from derops_cli.words import clean

WORST = 5
"""How many namespaces are named."""

UNSAID = "NotSaid"
"""Of assets without the condition: their operator is older, or has not looked yet."""


@dataclass(frozen=True, slots=True)
class NamespaceCount:
    """How many assets of a namespace have no flowing data."""

    namespace: str
    broken: int
    assets: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """What is counted."""

    within: str
    """The namespace; empty = all."""

    assets: int = 0
    by_reason: Mapping[str, int] = field(default_factory=dict)
    """Assets by the reason of ``DataFlowing``, the most first."""

    worst: tuple[NamespaceCount, ...] = ()
    dispatches: Mapping[str, int] | None = None
    """By phase; None = they were not looked at."""

    missing: tuple[Missing, ...] = ()


def count_fleet(
    assets: Iterable[Mapping[str, Any]] | Missing,
    dispatches: Iterable[Mapping[str, Any]] | Missing | None,
    within: str = "",
) -> Fleet:
    """Return the counts of manifests as the API server lists them."""
    listed = [] if isinstance(assets, Missing) else list(assets)
    said = [(str(each["metadata"]["namespace"]), *_flowing(each)) for each in listed]
    phases = None
    if dispatches is not None and not isinstance(dispatches, Missing):
        phases = dict(Counter(_phase(each) for each in dispatches).most_common())
    return Fleet(
        within=within,
        assets=len(listed),
        by_reason=dict(Counter(reason for _, _, reason in said).most_common()),
        worst=_find_worst(said),
        dispatches=phases,
        missing=tuple(each for each in (assets, dispatches) if isinstance(each, Missing)),
    )


def _find_worst(said: Iterable[tuple[str, str, str]]) -> tuple[NamespaceCount, ...]:
    """Return the namespaces with the most assets whose data does not flow."""
    said = list(said)
    broken = Counter(namespace for namespace, status, _ in said if status == "False")
    sizes = Counter(namespace for namespace, _, _ in said)
    order = sorted(broken.items(), key=lambda each: (-each[1], each[0]))
    return tuple(NamespaceCount(name, count, sizes[name]) for name, count in order[:WORST])


def _flowing(manifest: Mapping[str, Any]) -> tuple[str, str]:
    """Return status and reason of the condition."""
    conditions = (manifest.get("status") or {}).get("conditions") or ()
    found = next((each for each in conditions if each.get("type") == CONDITION), None)
    if found is None:
        return "Unknown", UNSAID
    return str(found.get("status", "Unknown")), clean(found.get("reason", UNSAID), 64)


def _phase(manifest: Mapping[str, Any]) -> str:
    return clean((manifest.get("status") or {}).get("phase", "Submitted"), 64)
