"""DERAsset: a device, what it may be asked for, and what is known of it."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import AwareDatetime, Field

from derops.resources.base import Condition, Metadata, Section

AssetType = Literal["Battery", "Solar", "EVCharger", "Generator", "Load"]
OperatingState = Literal["InService", "OutOfService", "Quarantined"]


class Ratings(Section):
    """What the device can do by its nameplate; magnitudes."""

    max_injection_watts: int
    max_absorption_watts: int
    energy_capacity_watt_hours: int | None = None


class Limits(Section):
    """What may be asked for; an absent power limit is the rating, see ``DERAssetSpec``."""

    max_injection_watts: int | None = None
    max_absorption_watts: int | None = None
    max_dispatch_duration_seconds: int = 86400
    max_ramp_watts_per_second: int | None = None
    min_reserve_percent: int | None = None
    min_seconds_between_writes: int | None = None
    on_exceed: Literal["Reject", "Clamp"] = "Reject"


class Fallback(Section):
    """What holds without a dispatch; an absent value is released to the device's own control."""

    active_power_watts: int | None = None
    max_generation_watts: int | None = None
    max_load_watts: int | None = None
    on_comms_loss: Literal["Continue", "Revert"] = "Continue"
    failsafe_after_seconds: int | None = None
    on_restart: Literal["Resume", "Revert"] = "Resume"


class Verification(Section):
    """How the effect of a setpoint is judged; absent = the agent's own values."""

    tolerance_watts: int | None = None
    tolerance_percent: int | None = None
    settle_seconds: int | None = None
    samples: int | None = None


class Lift(Section):
    """That one quarantine is over, and whether the key is to be trusted again."""

    quarantined_at: AwareDatetime
    key: Literal["Keep", "Revoke"]


class Identity(Section):
    """How the agent gets its certificate."""

    mode: Literal["Managed"] = "Managed"
    certificate_duration_seconds: int = 2_592_000
    lift: Lift | None = None


class Telemetry(Section):
    """What the agent measures."""

    interval_seconds: int = 10


class DERAssetSpec(Section):
    """What the device is, and what it may be asked for."""

    type: AssetType
    ratings: Ratings
    limits: Limits = Limits()
    fallback: Fallback = Fallback()
    verification: Verification | None = None
    identity: Identity = Identity()
    telemetry: Telemetry = Telemetry()
    operating_state: OperatingState = "InService"

    @property
    def max_injection_watts(self) -> int:
        """The most injection that may be asked for; a magnitude. No limit = the rating."""
        limit = self.limits.max_injection_watts
        return self.ratings.max_injection_watts if limit is None else limit

    @property
    def max_absorption_watts(self) -> int:
        """The most absorption that may be asked for; a magnitude. No limit = the rating."""
        limit = self.limits.max_absorption_watts
        return self.ratings.max_absorption_watts if limit is None else limit


class KnownCertificate(Section):
    """A certificate as the ledger knows it."""

    serial_number: str
    public_key_sha256: str = Field(alias="publicKeySHA256")
    not_after: AwareDatetime


class PreviousCertificate(KnownCertificate):
    """A certificate that was replaced and is accepted a little longer."""

    accepted_until: AwareDatetime


class Quarantine(Section):
    """Why and since when the agent is refused, whatever certificate it shows."""

    reason: str
    at: AwareDatetime


class IdentityStatus(Section):
    """The ledger of certificates."""

    uri: str | None = None
    current: KnownCertificate | None = None
    next: KnownCertificate | None = None
    previous: PreviousCertificate | None = None
    quarantine: Quarantine | None = None
    suspected_at: AwareDatetime | None = None
    revoked_before: AwareDatetime | None = None


class Capability(Section):
    """What the agent says that the device can do."""

    modes: tuple[str, ...]
    driver: str | None = None
    firmware: str | None = None
    max_injection_watts: int | None = None
    max_absorption_watts: int | None = None


class DERAssetStatus(Section):
    """What is known of the device; an observed generation of -1 means that nobody looked yet."""

    observed_generation: int
    identity: IdentityStatus | None = None
    active_dispatch: str | None = None
    last_connected_time: AwareDatetime | None = None
    last_disconnected_time: AwareDatetime | None = None
    capability: Capability | None = None
    conditions: tuple[Condition, ...] = ()


class DERAsset(Section):
    """A DERAsset."""

    metadata: Metadata
    spec: DERAssetSpec
    status: DERAssetStatus = DERAssetStatus(observed_generation=-1)


def parse_asset(manifest: Mapping[str, Any]) -> DERAsset:
    """Read a DERAsset as the API server gives it.

    Raises:
        pydantic.ValidationError: It is not a DERAsset of this version; a ValueError.
    """
    return DERAsset.model_validate(manifest)
