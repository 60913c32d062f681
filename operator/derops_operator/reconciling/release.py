"""Whether an asset that is taken out of service is let go: once its device is reverted."""

from derops.modes import OperatingState
from derops.schedules import SECOND_US
from derops_operator.reconciling.actions import (
    REVERT_UNKNOWN,
    AddFinalizer,
    AssetAction,
    RemoveFinalizer,
)
from derops_operator.reconciling.conditions import WantedCondition, find
from derops_operator.resources.assets import Asset
from derops_operator.resources.instants import parse_instant

RELEASE_GRACE_US = 60 * SECOND_US
"""How long an asset that is taken out waits for its dispatches to be reverted."""


def is_taken_out(asset: Asset) -> bool:
    """Tell whether it is being deleted, or is not to be in service."""
    return asset.meta.deleting_us is not None or asset.operating_state != OperatingState.IN_SERVICE


def plan_finalizer(
    asset: Asset, holding: list[str], now_us: int, *, for_good: bool
) -> list[AssetAction]:
    """Return what to do about its finalizer.

    Args:
        asset: As last heard.
        holding: Names of dispatches that its device may hold.
        now_us: The time.
        for_good: Whether it is let go after the grace, whatever the device holds.
    """
    holds, deleting_us = asset.meta.holds_finalizer, asset.meta.deleting_us
    if holding and not holds and deleting_us is None:
        return [AddFinalizer()]
    if not holding and holds:
        return [RemoveFinalizer()]
    if holds and for_good and deleting_us is not None and now_us > deleting_us + RELEASE_GRACE_US:
        return [RemoveFinalizer(warning=f"deleted while {_unconfirmed(holding)}")]
    return []


def released(asset: Asset, releasing: list[str], now_us: int) -> list[WantedCondition]:
    """Return the condition that tells whether the device was reverted, if that is of interest."""
    if releasing and is_release_overdue(asset, now_us):
        return [WantedCondition("Released", "False", REVERT_UNKNOWN, _unconfirmed(releasing))]
    if releasing:
        return [
            WantedCondition(
                "Released", "False", "Releasing", "waiting for the device to be reverted"
            )
        ]
    if is_taken_out(asset):
        return [WantedCondition("Released", "True", "NothingInFlight")]
    if find(asset.conditions, "Released"):
        return [WantedCondition("Released", "Unknown", "InService")]
    return []


def is_release_overdue(asset: Asset, now_us: int) -> bool:
    """Tell whether its device should have been reverted by now."""
    return now_us > _unreleased_since_us(asset, now_us) + RELEASE_GRACE_US


def release_looks_us(asset: Asset, now_us: int) -> list[int]:
    """Return when the grace of one that is to be released is over."""
    looks = [_unreleased_since_us(asset, now_us) + RELEASE_GRACE_US + SECOND_US]
    if asset.meta.deleting_us is not None:
        looks.append(asset.meta.deleting_us + RELEASE_GRACE_US)
    return looks


def _unreleased_since_us(asset: Asset, default_us: int) -> int:
    """Return since when ``Released`` is False, else the default."""
    known = find(asset.conditions, "Released")
    since = known.get("lastTransitionTime")
    return parse_instant(since) if since and known.get("status") == "False" else default_us


def _unconfirmed(holding: list[str]) -> str:
    return (
        f"these dispatches may be on the device, and the agent did not confirm their end within "
        f"{RELEASE_GRACE_US // SECOND_US} s: {', '.join(holding)}; "
        f"whether the device was reverted is not known"
    )
