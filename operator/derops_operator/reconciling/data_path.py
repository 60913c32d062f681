"""Whether the data of one asset flows: the condition ``DataFlowing``, which touches no other.

A break is told once it has lasted so long that the newest sample is stale; that data flows again,
at once. What is down for all assets is on none of them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from derops.data_path import CONDITION, LINK_OF, AssetFault, Link, stale_after_seconds
from derops.modes import OperatingState
from derops.schedules import SECOND_US
from derops_operator.gateways.views import Connectivity, SessionView
from derops_operator.reconciling.conditions import WantedCondition, find
from derops_operator.resources.assets import Asset
from derops_operator.resources.instants import format_second, parse_instant

_WITHOUT_STREAM = {str(fault) for fault, link in LINK_OF.items() if link is Link.STREAM}


class _Judgement(NamedTuple):
    """What holds now, and since when."""

    wanted: WantedCondition
    since_us: int


def data_flowing(
    asset: Asset, ledger: Mapping[str, Any], session: SessionView, now_us: int
) -> tuple[list[WantedCondition], int | None]:
    """Return the condition, and when time alone may change it.

    A condition that is absent begins once anything is known that would change it. While it says
    the same, so do its words: an operator or a gateway that starts again has nothing to write.

    Args:
        asset: As last heard from the API server.
        ledger: ``status.identity`` as it is to be.
        session: The stream of its agent, over all replicas.
        now_us: The time.
    """
    stored = find(asset.conditions, CONDITION)
    kept = [_as_stored(stored)] if stored else []
    judged = _judge(asset, ledger, session, stored, now_us)
    if judged is None or (stored and _says_the_same(stored, judged.wanted)):
        return kept, None
    due_us = _due_us(judged, session, stored, _stale_us(asset), now_us)
    return (kept, due_us) if now_us < due_us else ([judged.wanted], None)


def _due_us(
    judged: _Judgement,
    session: SessionView,
    stored: Mapping[str, Any],
    stale_us: int,
    now_us: int,
) -> int:
    """Return from when on a judgement that is another than the stored one is told.

    Of two changes in ``stale_us`` one is that data flows again, or that nobody can know.
    """
    status = stored.get("status")
    if judged.wanted.status == "True" or judged.wanted.reason == "ReplicaLost":
        return now_us
    begun_us = judged.since_us
    if status == "True" and session.stopped_us is not None:
        begun_us = min(begun_us, session.stopped_us)  # whatever happened since, no data came
    changed_us = 0
    if stored and status != judged.wanted.status:
        changed_us = parse_instant(stored["lastTransitionTime"])
    if changed_us > now_us:  # a clock was set back
        changed_us = 0
    return max(begun_us, changed_us) + stale_us


def _judge(
    asset: Asset,
    ledger: Mapping[str, Any],
    session: SessionView,
    stored: Mapping[str, Any],
    now_us: int,
) -> _Judgement | None:
    """Return what holds now; None = nobody was asked yet."""
    if session.link is Connectivity.UNHEARD:
        return None
    if session.link is Connectivity.UNKNOWN:
        words = "the gateway replica that knows is not connected to the operator"
        return _Judgement(WantedCondition(CONDITION, "Unknown", "ReplicaLost", words), now_us)
    if session.link is Connectivity.DISCONNECTED:
        since_us = _offline_since_us(asset, session, now_us)
        fault, words = _judge_offline(ledger, asset, now_us)
        if fault is AssetFault.AGENT_OFFLINE:
            words = _describe_offline(session, stored, since_us)
        return _Judgement(WantedCondition(CONDITION, "False", fault, words), since_us)
    path = session.path
    if path is None:
        words = (
            "its gateway does not say yet where its data stands: its agent may be catching up; an "
            "agent or a gateway of an earlier version never says"
        )
        unknown = WantedCondition(CONDITION, "Unknown", "NotTold", words)
        return _Judgement(unknown, min(session.asked_us, now_us))
    if path.fault is None:
        words = "its samples reach the event log"
        return _Judgement(WantedCondition(CONDITION, "True", "Flowing", words), now_us)
    # A gateway names no link before the newest sample is stale.
    since_us = now_us - _stale_us(asset)
    if stored.get("status") == "False" and path.shown_us <= now_us:  # else a clock was set back
        since_us = max(since_us, path.shown_us)
    return _Judgement(WantedCondition(CONDITION, "False", path.fault, path.message), since_us)


def _judge_offline(ledger: Mapping[str, Any], asset: Asset, now_us: int) -> tuple[AssetFault, str]:
    """Return why an asset without a stream has none, as far as that is known here."""
    if asset.operating_state == OperatingState.OUT_OF_SERVICE:
        return AssetFault.OUT_OF_SERVICE, "spec.operatingState is OutOfService"
    quarantine, current = ledger.get("quarantine"), ledger.get("current")
    if quarantine:
        words = f"its identity is refused since {quarantine['at']} ({quarantine['reason']})"
        return AssetFault.QUARANTINED, words
    if not current:
        return AssetFault.NOT_ENROLLED, "it has no certificate yet; see the condition Enrolled"
    if parse_instant(current["notAfter"]) <= now_us:
        words = f"the certificate of its agent expired at {current['notAfter']}"
        return AssetFault.CERTIFICATE_EXPIRED, words
    return AssetFault.AGENT_OFFLINE, ""


def _offline_since_us(asset: Asset, session: SessionView, now_us: int) -> int:
    """Return when its last stream ended, as far as known; 0 = it never had one."""
    if session.since_us:
        return min(session.since_us, now_us)
    if "lastConnectedTime" not in asset.status:
        return 0
    known = find(asset.conditions, "Connected")
    if known.get("status") == "False":
        return min(parse_instant(known["lastTransitionTime"]), now_us)
    return now_us


def _describe_offline(session: SessionView, stored: Mapping[str, Any], since_us: int) -> str:
    if not since_us:
        return "no agent of it has connected yet"
    why = f" ({session.end_reason})" if session.end_reason else ""
    words = f"its agent has no stream since {format_second(since_us)}{why}"
    if stored.get("status") == "True":
        return f"{words}; before that its data flowed"
    if stored.get("status") == "False" and stored["reason"] not in _WITHOUT_STREAM:
        return f"{words}; before that {stored['reason']}: {stored['message']}"
    return words


def _stale_us(asset: Asset) -> int:
    return stale_after_seconds(asset.telemetry_interval_seconds) * SECOND_US


def _says_the_same(stored: Mapping[str, Any], wanted: WantedCondition) -> bool:
    return (stored["status"], stored["reason"]) == (wanted.status, wanted.reason)


def _as_stored(stored: Mapping[str, Any]) -> WantedCondition:
    message = str(stored.get("message", ""))
    return WantedCondition(CONDITION, str(stored["status"]), str(stored["reason"]), message)
