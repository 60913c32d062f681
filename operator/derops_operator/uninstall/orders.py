"""What one Dispatch means for an uninstallation, and how that is said. Pure.

Little is read, and that with care: who may write a Dispatch may write what they like into it, and
an object that says nothing sensible must not keep the others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Any

from derops.lifecycle import TERMINAL, Phase
from derops.modes import Guard
from derops.schedules import SECOND_US
from derops_operator.resources.instants import format_second, parse_instant
from derops_operator.resources.manifests import attempt
from derops_operator.resources.objects import FINALIZER, Meta

FINALIZER_PREFIX = "derops.io/"
"""Of all finalizers that are ours, also of those that another version set."""

UNTOLD_COUNTS_US = int(timedelta(days=1).total_seconds()) * SECOND_US
"""For how long an end that nobody knows stands in the way of an uninstallation."""

_LONGEST_TEXT = 300
_CANCELLED = "Cancelled"
_WATTS = ("activePowerWatts", "maxGenerationWatts", "maxLoadWatts")


class Obstacle(StrEnum):
    """Whether a Dispatch stands in the way."""

    OVER = "Over"
    """It ended and its device is reverted, or no gateway was or will be given it."""

    OPEN = "Open"
    """A device may hold it, or may come to hold it."""

    UNTOLD = "Untold"
    """It ended more than a day ago, and nobody knows whether its device was reverted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingDispatch:
    """A Dispatch, as far as it matters here."""

    meta: Meta
    asset_name: str
    phase: str
    """Empty before the operator has looked at it."""

    withdrawn: bool
    given: bool
    """Whether a gateway may have been given it: the operator marks it before it does so."""

    reverted: str
    """The condition: True, False, Unknown; empty without one."""

    ended_us: int | None
    message: str
    what: str
    """Mode and value that the device holds, or was to hold."""

    start: str
    end: str
    guard: str

    @property
    def name(self) -> str:
        """Namespace and name, as people write it."""
        return f"{self.meta.namespace}/{self.meta.name}"

    @property
    def ended(self) -> bool:
        """Whether its phase is terminal."""
        return self.phase in TERMINAL


def read_order(manifest: Mapping[str, Any]) -> PendingDispatch:
    """Read a Dispatch; what in it makes no sense is as good as absent."""
    finalizers = _dig(manifest, "metadata", "finalizers")
    phase = _text(manifest, "status", "phase")
    ours = isinstance(finalizers, Sequence) and FINALIZER in finalizers
    submitted = _dig(manifest, "status", "timeline", "submittedAt") is not None
    completed, _ = attempt(lambda: parse_instant(_text(manifest, "status", "completionTime")))
    return PendingDispatch(
        meta=Meta(
            namespace=_text(manifest, "metadata", "namespace"),
            name=_text(manifest, "metadata", "name"),
            uid=_text(manifest, "metadata", "uid"),
            generation=0,
            resource_version=_text(manifest, "metadata", "resourceVersion"),
            created_us=0,
        ),
        asset_name=_text(manifest, "spec", "assetRef", "name"),
        phase=phase,
        withdrawn=_dig(manifest, "spec", "desiredState") == _CANCELLED,
        given=ours or submitted or phase not in ("", Phase.SUBMITTED),
        reverted=_condition(manifest, "Reverted"),
        ended_us=completed,
        message=_text(manifest, "status", "message"),
        what=_what(manifest),
        start=_text(manifest, "status", "timeline", "plannedStart") or _planned(manifest, 0),
        end=_text(manifest, "status", "timeline", "plannedEnd")
        or _planned(manifest, _dig(manifest, "spec", "durationSeconds")),
        guard=_text(manifest, "status", "reversion", "guard"),
    )


def is_connected(asset: Mapping[str, Any]) -> bool:
    """Tell whether a DERAsset says that its agent is connected."""
    return _condition(asset, "Connected") == "True"


def standing(order: PendingDispatch, now_us: int, *, stopped: bool = False) -> Obstacle:
    """Tell whether a Dispatch stands in the way.

    Args:
        order: The Dispatch.
        now_us: The time.
        stopped: Whether no operator runs any more, so that nothing more is given to gateways.
    """
    if not order.ended:
        never = not order.given and (order.withdrawn or stopped)
        return Obstacle.OVER if never else Obstacle.OPEN
    if order.reverted == "True":
        return Obstacle.OVER
    long_ago = order.ended_us is not None and now_us > order.ended_us + UNTOLD_COUNTS_US
    return Obstacle.UNTOLD if order.reverted != "False" and long_ago else Obstacle.OPEN


def is_to_cancel(order: PendingDispatch) -> bool:
    """Tell whether a Dispatch has yet to be withdrawn."""
    return not order.ended and not order.withdrawn


def describe(order: PendingDispatch, *, why: str = "", connected: bool | None = None) -> str:
    """Say in one line why a Dispatch stands in the way, and what its device may hold until when.

    Args:
        order: The Dispatch.
        why: What kept it from being cancelled, where something did.
        connected: Whether its agent is; None = there is no such asset.
    """
    reasons = [why] if why else []
    if connected is None:
        reasons.append(f"there is no DERAsset {order.asset_name}")
    elif not connected:
        reasons.append(f"the agent of {order.asset_name} is not connected")
    if order.message:
        reasons.append(order.message)
    return f"{order.name}: {order.phase or 'new'}; {'; '.join(reasons)}; {_may_hold(order)}"


def release_patch(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the JSON patch that takes our finalizers off an object; empty = it has none.

    Each is tested before it is removed, so that the finalizers of others stay whatever happens
    meanwhile; and so is the uid.
    """
    finalizers = _dig(manifest, "metadata", "finalizers")
    found = [
        index
        for index, name in enumerate(finalizers if isinstance(finalizers, list) else ())
        if isinstance(name, str) and name.startswith(FINALIZER_PREFIX)
    ]
    if not found or not isinstance(finalizers, list):
        return []
    patch = [{"op": "test", "path": "/metadata/uid", "value": _dig(manifest, "metadata", "uid")}]
    for index in reversed(found):
        path = f"/metadata/finalizers/{index}"
        patch.append({"op": "test", "path": path, "value": finalizers[index]})
        patch.append({"op": "remove", "path": path})
    return patch


def _may_hold(order: PendingDispatch) -> str:
    if order.ended and order.reverted == "False":
        return (
            f"its device may hold {order.what} still, and until its agent, which tries on, reverts "
            f"it: there is no other end"
        )
    if order.ended:
        return (
            f"nobody knows whether its device was reverted; it was to hold {order.what} until "
            f"{order.end}"
        )
    if order.phase == Phase.ACTIVE:
        return f"its device may hold {order.what} until {order.end}, {_guarded(order)}"
    if not order.given:
        return f"no device has it; it is for {order.what} from {order.start} until {order.end}"
    return (
        f"its agent, if it has it, starts it by itself: its device may hold {order.what} from "
        f"{order.start} until {order.end}"
    )


def _guarded(order: PendingDispatch) -> str:
    if order.guard == Guard.DEVICE_TIMER:
        return "or at most a minute longer, if its agent is gone for good: the device has a timer"
    return "and longer if its agent does not run then: nothing else ends it"


def _what(manifest: Mapping[str, Any]) -> str:
    applied = _dig(manifest, "status", "execution", "applied")
    setpoint = _dig(manifest, "spec", "setpoint")
    mode = _text(setpoint, "mode") or "a setpoint"
    values = [_dig(applied, "watts"), *(_dig(setpoint, field) for field in _WATTS)]
    watts = next((each for each in values if isinstance(each, int)), None)
    return mode if watts is None else f"{mode} {watts} W"


def _planned(manifest: Mapping[str, Any], after_seconds: object) -> str:
    begin = _text(manifest, "spec", "startTime") or _text(manifest, "metadata", "creationTimestamp")
    seconds = after_seconds if isinstance(after_seconds, int) else 0
    planned, _ = attempt(lambda: format_second(parse_instant(begin) + seconds * SECOND_US))
    return planned or "a time that it does not tell"


def _condition(manifest: Mapping[str, Any], kind: str) -> str:
    conditions = _dig(manifest, "status", "conditions")
    for each in conditions if isinstance(conditions, list) else ():
        if _dig(each, "type") == kind:
            return _text(each, "status")
    return ""


def _dig(value: object, *path: str) -> object:
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def _text(value: object, *path: str) -> str:
    """Return a text on one line that no terminal obeys; empty = there is none."""
    found = _dig(value, *path)
    if not isinstance(found, str):
        return ""
    words = " ".join(found[: 4 * _LONGEST_TEXT].split())
    return "".join(each for each in words if each.isprintable())[:_LONGEST_TEXT]
