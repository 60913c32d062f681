"""What is wrong with a device, as conditions of its DERAsset. They never touch ``Ready``."""

from collections.abc import Iterable, Mapping
from typing import Any

from derops.lifecycle import MESSAGE_LIMIT
from derops.wire.v1 import agent_pb2
from derops_operator.gateways.views import Connectivity, SessionView
from derops_operator.reconciling.conditions import WantedCondition, find
from derops_operator.resources.instants import format_second

DEVICE_CONDITIONS = ("TelemetryDegraded", "DeviceSilent", "FallbackNotHeld")

_BEFORE = "before that it was "


def device_conditions(
    stored: Iterable[Mapping[str, Any]], session: SessionView
) -> list[WantedCondition]:
    """Return the conditions that tell what is wrong with a device.

    One is absent before it is True for the first time, so that a fleet that is well costs no write.
    What nobody says any more is Unknown, with what was said last.
    """
    stored, facts = list(stored), session.device
    if session.link is Connectivity.UNHEARD:
        return []  # what was known stays
    if facts is None:
        return [
            _unknown(known, session.link)
            for kind in DEVICE_CONDITIONS
            if (known := find(stored, kind))
        ]
    told = (_degraded(facts), _silent(facts), _not_held(facts))
    return [each for each in told if each.status == "True" or find(stored, each.type)]


def last_known(condition: Mapping[str, Any]) -> str:
    """Return the status that a condition has, or had before nobody said it any more."""
    status = str(condition.get("status", ""))
    if status != "Unknown":
        return status
    return str(condition["message"]).partition(_BEFORE)[2].partition(":")[0]


def _degraded(facts: agent_pb2.DeviceFacts) -> WantedCondition:
    if not facts.bad_points and not facts.more_bad_points:
        return WantedCondition("TelemetryDegraded", "False", "AllPointsGood", "no point is bad")
    return WantedCondition("TelemetryDegraded", "True", "BadPoints", _name_points(facts))


def _name_points(facts: agent_pb2.DeviceFacts) -> str:
    """Return which points are bad, as many as there is room for."""
    named: list[str] = []
    more = facts.more_bad_points + len(facts.bad_points)
    for point in facts.bad_points:
        raw = f"raw value {point.raw}, " if point.raw else ""
        words = f"{point.name}: {point.problem} ({raw}since {format_second(point.since_us)})"
        if sum(len(each) + 2 for each in named) + len(words) > MESSAGE_LIMIT - len(_and_more(more)):
            break
        named.append(words)
        more -= 1
    return "; ".join(named) + (_and_more(more) if more else "")


def _and_more(number: int) -> str:
    return f"; and {number} more"


def _silent(facts: agent_pb2.DeviceFacts) -> WantedCondition:
    if not facts.silent_since_us:
        return WantedCondition("DeviceSilent", "False", "Answers", "the device answers its agent")
    since = format_second(facts.silent_since_us)
    words = f"the device has given no sample since {since}: {facts.silence}"
    return WantedCondition("DeviceSilent", "True", "NoAnswer", words)


def _not_held(facts: agent_pb2.DeviceFacts) -> WantedCondition:
    if not facts.fallback_problem:
        words = "the device holds spec.fallback where nothing else is ordered"
        return WantedCondition("FallbackNotHeld", "False", "Representable", words)
    reason = "NotTaken" if facts.fallback_not_taken else "NotRepresentable"
    return WantedCondition("FallbackNotHeld", "True", reason, facts.fallback_problem)


def _unknown(known: Mapping[str, Any], link: Connectivity) -> WantedCondition:
    reason, why = {
        Connectivity.CONNECTED: ("NotTold", "nothing that it said on this stream is shown yet"),
        Connectivity.UNKNOWN: (
            "ReplicaLost", "the gateway replica that knows is not connected to the operator",
        ),
    }.get(link, ("AgentOffline", "the agent has no stream"))  # fmt: skip
    before = str(known.get("message", ""))
    if known["status"] == "Unknown":
        before = before.partition(_BEFORE)[2]
    else:
        before = f"{known['status']}: {before}"
    return WantedCondition(str(known["type"]), "Unknown", reason, f"{why}; {_BEFORE}{before}")
