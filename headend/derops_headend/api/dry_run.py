"""What would become of an order now, by the rules of the operator. Pure."""

from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

from pydantic import Field

from derops.admission import Target, modes_of, refuse_order
from derops.checks import Refusal
from derops.lifecycle import Phase, Reason
from derops.resources.derassets import DERAssetSpec
from derops.resources.dispatches import DispatchSpec
from derops_headend.api.assets import AssetView
from derops_headend.api.models import Model
from derops_headend.api.orders import DispatchView


class Result(StrEnum):
    """What a dry run can say."""

    LIKELY = "likely"
    """No rule that is known here is against it; the agent checks again."""

    REFUSED = "refused"
    """The operator ends it with this phase (Rejected, or Expired: its start deadline has passed)
    and reason, unless the facts change."""

    UNKNOWN = "unknown"
    """It depends on what is not known here."""


class Fact(Model):
    """Something that was judged by."""

    name: str
    value: str
    age_seconds: float = Field(description="How old it may be, in s.")


class Foresight(Model):
    """What would become of an order. Nothing was made, and nobody was told."""

    result: Result
    phase: str | None = Field(
        default=None,
        description="With `refused`: `Rejected`, or `Expired` if its start deadline has passed.",
    )
    reason: str | None = Field(default=None, description="As in a Dispatch's status.")
    message: str
    facts: list[Fact]
    dispatch: DispatchView = Field(description="As it would be made, with all defaults.")


class Charge(NamedTuple):
    """State of charge of a battery, as it was last measured."""

    percent: float
    at: datetime


class KnownFacts(NamedTuple):
    """What is known when an order is judged."""

    asset: AssetView | None
    """None = there is none."""

    heard_seconds_ago: float
    """How old the asset may be."""

    charge: Charge | None
    """None = not known."""

    now: datetime


class Judgement(NamedTuple):
    """The result, with phase and reason as a Dispatch would have them."""

    result: Result
    phase: Phase | None
    reason: str | None
    message: str


def judge(spec: DispatchSpec, seen: KnownFacts) -> Judgement:
    """Judge an order that has a start; see ``Result``."""
    asset = seen.asset
    if asset is None:
        return _unknown(
            Reason.ASSET_NOT_FOUND,
            "there is no such asset yet; a Dispatch waits for it until 60 s after its creation, or "
            "until its start deadline",
        )
    if asset.spec is None:
        return _unknown(None, f"the asset cannot be read: {asset.problem}")
    target = target_of(asset, asset.spec)
    refusal = _refuse(spec, target)
    if refusal is not None:
        return Judgement(Result.REFUSED, Phase.REJECTED, refusal.reason, refusal.message)
    if spec.start_time is None or seen.now > accept_by(spec, spec.start_time):
        return Judgement(
            Result.REFUSED,
            Phase.EXPIRED,
            Reason.START_DEADLINE_EXCEEDED,
            f"its start plus {spec.accept_within_seconds} s has passed",
        )
    return _beyond_the_operator(spec, target, asset, seen)


def facts_of(seen: KnownFacts) -> list[Fact]:
    """Return the facts by which an order was judged."""
    asset, age = seen.asset, max(0.0, round(seen.heard_seconds_ago, 3))
    if asset is None:
        return [Fact(name="asset", value="none", age_seconds=age)]
    facts = [Fact(name="asset.generation", value=str(asset.generation), age_seconds=age)]
    if asset.status is not None:
        observed = str(asset.status.observed_generation)
        facts.append(Fact(name="asset.status.observedGeneration", value=observed, age_seconds=age))
        facts.append(Fact(name="asset.status.connected", value=connected(asset), age_seconds=age))
    if seen.charge is not None:
        old = max(0.0, (seen.now - seen.charge.at).total_seconds())
        facts.append(
            Fact(
                name="stateOfChargePercent",
                value=f"{seen.charge.percent:g}",
                age_seconds=round(old, 3),
            )
        )
    return facts


def target_of(asset: AssetView, spec: DERAssetSpec) -> Target:
    """Return what an asset's manifest says of it."""
    capability = asset.status.capability if asset.status else None
    identity = asset.status.identity if asset.status else None
    quarantine = identity.quarantine if identity else None
    return Target(
        name=asset.name,
        deleting=asset.deleted_at is not None,
        operating_state=spec.operating_state,
        quarantine_reason=quarantine.reason if quarantine else "",
        modes=modes_of(spec.type, capability.modes if capability else ()),
        max_injection_watts=spec.max_injection_watts,
        max_absorption_watts=spec.max_absorption_watts,
        max_dispatch_duration_seconds=spec.limits.max_dispatch_duration_seconds,
        on_exceed=spec.limits.on_exceed,
        energy_capacity_watt_hours=spec.ratings.energy_capacity_watt_hours or 0,
        min_reserve_percent=spec.limits.min_reserve_percent or 0,
    )


def accept_by(spec: DispatchSpec, start: datetime) -> datetime:
    """Return the instant after which it is refused as too late."""
    return start + timedelta(seconds=spec.accept_within_seconds)


def connected(asset: AssetView) -> str:
    """Return the status of the condition Connected."""
    conditions = asset.status.conditions if asset.status else ()
    return next((each.status for each in conditions if each.type == "Connected"), "Unknown")


def _beyond_the_operator(
    spec: DispatchSpec, target: Target, asset: AssetView, seen: KnownFacts
) -> Judgement:
    """Judge by rules of the agent, which may decide otherwise once it has the order."""
    if seen.charge is not None:
        refusal = _refuse(spec, target, seen.charge.percent)
        if refusal is not None:
            return _unknown(refusal.reason, f"its agent would refuse it now: {refusal.message}")
    if connected(asset) != "True":
        return _unknown(
            Reason.AGENT_OFFLINE,
            "its agent is not connected; it must be, before the order's start deadline has passed",
        )
    return Judgement(
        Result.LIKELY, None, None, f"within the limits of {asset.name}; its agent is connected"
    )


def _refuse(spec: DispatchSpec, target: Target, percent: float | None = None) -> Refusal | None:
    return refuse_order(
        mode=spec.setpoint.mode,
        watts=spec.setpoint.watts,
        duration_seconds=spec.duration_seconds,
        target=target,
        state_of_charge_percent=percent,
    )


def _unknown(reason: str | None, message: str) -> Judgement:
    return Judgement(Result.UNKNOWN, None, reason, message)
