"""DERAssets as the operator keeps them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from derops.admission import modes_of
from derops.resources.derassets import DERAssetSpec, Verification
from derops_operator.resources.instants import to_us
from derops_operator.resources.objects import Meta, read_meta, status_of_manifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Asset:
    """A DERAsset. Limits are resolved: an absent one is the rating."""

    meta: Meta
    type: str
    rated_max_injection_watts: int
    rated_max_absorption_watts: int
    energy_capacity_watt_hours: int
    limit_max_injection_watts: int
    limit_max_absorption_watts: int
    max_dispatch_duration_seconds: int
    max_ramp_watts_per_second: int | None
    min_reserve_percent: int | None
    min_seconds_between_writes: int | None
    verification_tolerance_watts: int | None
    verification_tolerance_percent: int | None
    verification_settle_seconds: int | None
    verification_samples: int | None
    on_exceed: str
    fallback_active_power_watts: int | None
    fallback_max_generation_watts: int | None
    fallback_max_load_watts: int | None
    on_comms_loss: str
    failsafe_after_seconds: int
    on_restart: str
    telemetry_interval_seconds: int
    certificate_duration_seconds: int
    lift_of_us: int | None
    """Which quarantine is to be lifted, by its instant."""

    lift_key: str
    """Keep or Revoke; empty without a lift."""

    operating_state: str
    status: Mapping[str, Any]

    @property
    def identity(self) -> Mapping[str, Any]:
        """What its stored status says of its certificates and its quarantine; empty = nothing."""
        identity: Mapping[str, Any] = self.status.get("identity", {})
        return identity

    @property
    def conditions(self) -> Sequence[Mapping[str, Any]]:
        """The conditions of its stored status."""
        conditions: Sequence[Mapping[str, Any]] = self.status.get("conditions", [])
        return conditions

    @property
    def modes(self) -> frozenset[str]:
        """What may be asked of it: its type's modes, narrowed by what its agent reported."""
        return modes_of(self.type, self.status.get("capability", {}).get("modes"))

    @property
    def quarantine(self) -> Mapping[str, Any]:
        """The quarantine of its identity in its stored status; empty = there is none."""
        quarantine: Mapping[str, Any] = self.identity.get("quarantine") or {}
        return quarantine

    @property
    def quarantine_reason(self) -> str:
        """Why its identity is quarantined in its stored status; empty = it is not."""
        return str(self.quarantine.get("reason", ""))


def read_asset(manifest: Mapping[str, Any]) -> Asset:
    """Read a DERAsset."""
    spec = DERAssetSpec.model_validate(manifest["spec"])
    ratings, limits, fallback = spec.ratings, spec.limits, spec.fallback
    verification, lift = spec.verification or Verification(), spec.identity.lift
    asset = Asset(
        meta=read_meta(manifest),
        type=spec.type,
        rated_max_injection_watts=ratings.max_injection_watts,
        rated_max_absorption_watts=ratings.max_absorption_watts,
        energy_capacity_watt_hours=ratings.energy_capacity_watt_hours or 0,
        limit_max_injection_watts=spec.max_injection_watts,
        limit_max_absorption_watts=spec.max_absorption_watts,
        max_dispatch_duration_seconds=limits.max_dispatch_duration_seconds,
        max_ramp_watts_per_second=limits.max_ramp_watts_per_second,
        min_reserve_percent=limits.min_reserve_percent,
        min_seconds_between_writes=limits.min_seconds_between_writes,
        verification_tolerance_watts=verification.tolerance_watts,
        verification_tolerance_percent=verification.tolerance_percent,
        verification_settle_seconds=verification.settle_seconds,
        verification_samples=verification.samples,
        on_exceed=limits.on_exceed,
        fallback_active_power_watts=fallback.active_power_watts,
        fallback_max_generation_watts=fallback.max_generation_watts,
        fallback_max_load_watts=fallback.max_load_watts,
        on_comms_loss=fallback.on_comms_loss,
        failsafe_after_seconds=fallback.failsafe_after_seconds or 0,
        on_restart=fallback.on_restart,
        telemetry_interval_seconds=spec.telemetry.interval_seconds,
        certificate_duration_seconds=spec.identity.certificate_duration_seconds,
        lift_of_us=to_us(lift.quarantined_at) if lift is not None else None,
        lift_key=lift.key if lift is not None else "",
        operating_state=spec.operating_state,
        status=status_of_manifest(manifest),
    )
    # What others ask of it must not fail in the middle of what they do.
    _ = asset.modes, asset.quarantine_reason
    return asset
