"""What is broken for all assets, over all gateway replicas: the installation's conditions. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from derops.data_path import Link, SharedFault
from derops.installation import HOLDS, LINKS, NOT_TOLD, Condition
from derops.lifecycle import MESSAGE_LIMIT
from derops.schedules import SECOND_US
from derops_operator.gateways.headend import ToldLink
from derops_operator.gateways.views import LOST_AFTER_US
from derops_operator.reconciling.conditions import WantedCondition, fold
from derops_operator.resources.instants import format_second, parse_instant

SETTLING_US = 45 * SECOND_US
"""How long a replica that was connected may take to say how its links stand: it calls a writer
silent after 30 s."""

MAX_NAMED = 3
"""Replicas that a message names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One gateway replica, and what it says.

    Attributes:
        name: Of the replica.
        connected: Whether it has a stream.
        changed_us: When it was connected or lost.
        links: How each link stands, as far as it said.
    """

    name: str
    connected: bool
    changed_us: int
    links: Mapping[Link, ToldLink]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateways:
    """All replicas, and how many there should be.

    Attributes:
        start_us: When the operator began to connect.
        expected: How many the configuration resolves to; None = that is not known.
        replicas: All that were ever connected.
    """

    start_us: int
    expected: int | None
    replicas: Sequence[ReplicaView]


def judge_installation(
    gateways: Gateways, known: Iterable[Mapping[str, Any]], now_us: int
) -> list[dict[str, Any]]:
    """Return the conditions in the order of ``LINKS``.

    Args:
        gateways: What is known of them.
        known: The conditions as they were told last; those stay of which nothing can be said yet.
        now_us: The clock.
    """
    stored = {str(each["type"]): each for each in known}
    for condition, link in LINKS.items():
        judge = _judge_gateways if link is Link.GATEWAY else _judge_link
        told = judge(condition, gateways, now_us)
        if told is None and condition not in stored:
            told = WantedCondition(
                condition, "Unknown", NOT_TOLD, "no gateway replica has said it yet"
            )
        if told is not None:
            stored = {str(each["type"]): each for each in fold(stored.values(), [told], 0, now_us)}
    return [_bare(stored[condition]) for condition in LINKS]


def is_settled(gateways: Gateways, now_us: int) -> bool:
    """Tell whether the operator may speak: all was said, or long enough is waited for."""
    if now_us >= gateways.start_us + SETTLING_US:
        return True
    connected = [each for each in gateways.replicas if each.connected]
    links = set(LINKS.values()) - {Link.GATEWAY}
    return (
        gateways.expected is not None
        and len(connected) >= gateways.expected > 0
        and all(links <= each.links.keys() for each in connected)
    )


def _judge_gateways(
    condition: Condition, gateways: Gateways, now_us: int
) -> WantedCondition | None:
    """Judge whether all replicas are connected; one that was just lost may be restarting."""
    expected = gateways.expected
    counting = [each for each in gateways.replicas if _counts(each, now_us)]
    starting = now_us < gateways.start_us + LOST_AFTER_US
    if expected is not None and len(counting) >= expected > 0:
        message = f"{expected} of {expected} gateway replicas are connected"
        return WantedCondition(condition, "True", HOLDS, message)
    if starting:
        return None
    number = "an unknown number" if expected is None else str(expected)
    # Names only of those that count: one that is gone for good has no place in a message.
    names = ", ".join(sorted(each.name[:63] for each in counting)[:MAX_NAMED])
    message = f"{len(counting)} of {number} gateway replicas are connected" + (
        f": {names}" if names else ""
    )
    if expected is None:
        message += "; their addresses cannot be resolved"
    return WantedCondition(condition, "False", SharedFault.GATEWAY_LOST, message)


def _judge_link(condition: Condition, gateways: Gateways, now_us: int) -> WantedCondition | None:
    """Judge a link by the worst that a replica says; None = some may still speak."""
    link = LINKS[condition]
    counting = [each for each in gateways.replicas if _counts(each, now_us)]
    told = {each.name: each.links[link] for each in counting if link in each.links}
    worst = _worst_of(told)
    if worst is not None:
        fault, name = worst
        message = f"{name[:63]}: {told[name].message}"
        return WantedCondition(condition, "False", fault, message)
    if len(told) < len(counting) or not counting:
        untold = [each for each in counting if each.name not in told]
        return _judge_untold(condition, untold, gateways, now_us)
    first = min(told)
    return WantedCondition(condition, "True", HOLDS, f"{first[:63]}: {told[first].message}")


def _worst_of(told: Mapping[str, ToldLink]) -> tuple[SharedFault, str] | None:
    """Return the first fault in the order of ``SharedFault``, and the replica that says it."""
    order = list(SharedFault)
    broken = [(each.fault, name) for name, each in told.items() if each.fault is not None]
    return min(broken, key=lambda each: (order.index(each[0]), each[1]), default=None)


def _judge_untold(
    condition: Condition, untold: Sequence[ReplicaView], gateways: Gateways, now_us: int
) -> WantedCondition | None:
    """Judge a link of which some replicas, or all, say nothing; None = they may still speak."""
    if any(now_us < each.changed_us + SETTLING_US for each in untold):
        return None
    if untold:
        names = ", ".join(sorted(each.name[:63] for each in untold)[:MAX_NAMED])
        message = f"not told by {names}: a gateway of an earlier version, or its writer is silent"
        return WantedCondition(condition, "Unknown", NOT_TOLD, message)
    if now_us < gateways.start_us + LOST_AFTER_US:
        return None
    message = "no gateway replica is connected, and nobody else can say it"
    return WantedCondition(condition, "Unknown", SharedFault.GATEWAY_LOST, message)


def _counts(replica: ReplicaView, now_us: int) -> bool:
    return replica.connected or now_us < replica.changed_us + LOST_AFTER_US


def _bare(condition: Mapping[str, Any]) -> dict[str, Any]:
    names = ("type", "status", "reason", "message", "lastTransitionTime")
    return {name: condition[name] for name in names}


def news_of(conditions: Iterable[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Return what of conditions is worth a write before the next renewal; words alone are not."""
    return [(str(each["type"]), str(each["status"]), str(each["reason"])) for each in conditions]


def read_conditions(found: object, now_us: int) -> list[dict[str, Any]]:
    """Return the conditions of an earlier operator, in what anybody may have written."""
    if not isinstance(found, list):
        return []
    kept = {}
    for each in found[: len(LINKS)]:
        with_time = isinstance(each, dict) and each.get("type") in set(Condition)
        if with_time and _is_whole(each, now_us):
            kept[each["type"]] = {**_bare(each), "message": each["message"][:MESSAGE_LIMIT]}
    return list(kept.values())


def _is_whole(condition: Mapping[str, Any], now_us: int) -> bool:
    names = ("status", "reason", "message", "lastTransitionTime")
    words = [condition.get(name) for name in names]
    if not all(isinstance(each, str) and each.isprintable() for each in words):
        return False
    if condition["status"] not in {"True", "False", "Unknown"} or len(condition["reason"]) > 63:
        return False
    try:
        changed_us = parse_instant(condition["lastTransitionTime"])
    except (ValueError, OverflowError):
        return False
    is_ours = condition["lastTransitionTime"] == format_second(changed_us)
    return is_ours and changed_us <= now_us
