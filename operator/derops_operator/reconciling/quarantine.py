"""Whether the identity of an asset is quarantined, and what that means."""

from collections.abc import Mapping, Sequence
from typing import Any

from derops.modes import OperatingState
from derops_operator.gateways.views import CLONE_SUSPECTED, SessionView
from derops_operator.reconciling.conditions import WantedCondition, find
from derops_operator.reconciling.release import is_release_overdue
from derops_operator.resources.assets import Asset
from derops_operator.resources.instants import format_instant, parse_instant

_SPEC_QUARANTINE = "SetInSpec"
_LIFTED = {
    "Keep": "spec.identity.lift says that the key may be used again",
    "Revoke": "spec.identity.lift says that the key may be stolen: cert-manager makes a new one",
}


def find_quarantine(
    asset: Asset, session: SessionView, now_us: int, *, releasing: bool
) -> dict[str, Any] | None:
    """Return the quarantine of the identity; it stays until a person lifts this very one.

    One that the spec asks for begins once the device is released, or the grace for that is over: a
    quarantined agent has no stream on which it could hear of a cancel.
    """
    stored = asset.identity.get("quarantine") or None
    by_spec = asset.operating_state == OperatingState.QUARANTINED
    at = format_instant(now_us)
    if is_suspected(asset, session):
        return {"reason": CLONE_SUSPECTED, "at": at}
    if stored is not None:
        lifted = not by_spec and asset.lift_of_us == parse_instant(stored["at"])
        return None if lifted else dict(stored)
    if not by_spec or (releasing and not is_release_overdue(asset, now_us)):
        return None
    return {"reason": _SPEC_QUARANTINE, "at": at}


def is_suspected(asset: Asset, session: SessionView) -> bool:
    """Tell whether a gateway suspects a clone, and no quarantine has come of it yet."""
    stored = asset.identity
    return session.suspected_us > suspected_us(stored)


def suspected_at(session: SessionView) -> str:
    """Return the instant of a suspicion, rounded up to what status can say."""
    return format_instant(-(-session.suspected_us // 1000) * 1000)


def suspected_us(stored: Mapping[str, Any]) -> int:
    """Return the instant of the last suspicion that ``status.identity`` tells of; 0 = none."""
    return parse_instant(stored["suspectedAt"]) if stored.get("suspectedAt") else 0


def quarantined(asset: Asset, ledger: Mapping[str, Any]) -> list[WantedCondition]:
    """Return the condition that tells of a quarantine, where there is one or was one."""
    quarantine = ledger.get("quarantine")
    if quarantine:
        at = quarantine["at"]
        words = (
            f"the agent gets no stream since {at}; to lift it, find out whether its key was copied "
            f"and set spec.identity.lift to quarantinedAt: {at} and key: Keep or Revoke"
        )
        if asset.operating_state == OperatingState.QUARANTINED:
            words += ", and spec.operatingState to InService"
        return [WantedCondition("Quarantined", "True", quarantine["reason"], words)]
    if find(asset.conditions, "Quarantined"):
        return [WantedCondition("Quarantined", "False", "Lifted", _LIFTED.get(asset.lift_key, ""))]
    return []


def describe_cut_off(reason: str, holding: Sequence[str]) -> str:
    """Return what is not known of a device whose agent gets no stream any more."""
    return (
        f"quarantined ({reason}) while these dispatches may be on the device: "
        f"{', '.join(holding)}; "
        f"the agent gets no stream, and is to revert the device at their planned ends: whether it "
        f"did is not known until the quarantine is lifted"
    )
