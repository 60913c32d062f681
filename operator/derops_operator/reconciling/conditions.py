"""Conditions: those that are wanted, folded into those that are stored."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from derops.lifecycle import MESSAGE_LIMIT
from derops_operator.resources.instants import format_second


class WantedCondition(NamedTuple):
    """A condition as it should read."""

    type: str
    status: str
    reason: str
    message: str = ""


def truth(value: bool) -> str:
    """Return True or False as conditions spell it."""
    return "True" if value else "False"


def status_of(conditions: Iterable[Mapping[str, Any]], kind: str) -> str:
    """Return the status of a condition, Unknown where there is none."""
    return next((str(each["status"]) for each in conditions if each["type"] == kind), "Unknown")


def find(conditions: Iterable[Mapping[str, Any]], kind: str) -> Mapping[str, Any]:
    """Return a condition, or an empty mapping."""
    return next((each for each in conditions if each["type"] == kind), {})


def fold(
    stored: Iterable[Mapping[str, Any]],
    wanted: Iterable[WantedCondition],
    generation: int,
    now_us: int,
) -> list[dict[str, Any]]:
    """Return the stored conditions with the wanted ones in place.

    The time of a transition moves only with the status. Conditions of others stay where they are.
    """
    folded = {each["type"]: dict(each) for each in stored}
    for want in wanted:
        known = folded.get(want.type, {})
        changed = known.get("status") != want.status
        folded[want.type] = {
            "type": want.type,
            "status": want.status,
            "reason": want.reason,
            "message": want.message[:MESSAGE_LIMIT],
            "observedGeneration": generation,
            "lastTransitionTime": (
                format_second(now_us) if changed else known["lastTransitionTime"]
            ),
        }
    return list(folded.values())
