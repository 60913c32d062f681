"""What the operator keeps of each resource: slim, frozen, without managed fields.

A manifest is read once, when it arrives; everything behind works on these values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from derops.checks import MODES_BY_TYPE
from derops.lifecycle import Phase
from derops.resources.derassets import DERAssetSpec, Verification
from derops.resources.dispatches import DispatchSpec
from derops.schedules import SECOND_US, accept_by_us
from derops_operator.certificates import Csr, Issued, read_csr, read_issued
from derops_operator.instants import parse_instant, to_us

FINALIZER = "derops.io/in-flight"
"""On a Dispatch from submission to its terminal phase; on a DERAsset while it has such a one, or
one that its device may still hold."""

MANAGED_BY = {"app.kubernetes.io/managed-by": "derops"}
"""Label of everything the operator creates."""

ASSET_LABEL = "derops.io/asset"
"""Label of what belongs to one asset; cert-manager copies it from a Certificate to its requests."""

_CERTIFICATE_NAME = "cert-manager.io/certificate-name"
_CERTIFICATE_REVISION = "cert-manager.io/certificate-revision"


class Kind(StrEnum):
    """The kinds the operator works on, by their plural names."""

    ASSET = "derassets"
    DISPATCH = "dispatches"
    REQUEST = "certificaterequests"
    CERTIFICATE = "certificates"


class Key(NamedTuple):
    """One object to reconcile."""

    kind: Kind
    namespace: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Meta:
    """The parts of an object's metadata that decide anything."""

    namespace: str
    name: str
    uid: str
    generation: int
    resource_version: str
    created_us: int
    deleting_us: int | None = None
    finalizers: tuple[str, ...] = ()

    @property
    def holds_finalizer(self) -> bool:
        """Whether our finalizer is on the object."""
        return FINALIZER in self.finalizers


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
    def modes(self) -> frozenset[str]:
        """What may be asked of it: its type's modes, narrowed by what its agent reported."""
        modes = MODES_BY_TYPE.get(self.type, frozenset())
        offered = self.status.get("capability", {}).get("modes")
        return modes & frozenset(offered) if offered else modes

    @property
    def quarantine_reason(self) -> str:
        """Why its identity is quarantined in status; empty = it is not."""
        quarantine = self.status.get("identity", {}).get("quarantine") or {}
        return str(quarantine.get("reason", ""))


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatch:
    """A Dispatch. Defaults that depend on other fields are resolved."""

    meta: Meta
    asset_name: str
    mode: str
    watts: int
    start_us: int
    duration_seconds: int
    start_deadline_seconds: int
    randomize_start_seconds: int
    late_policy: str
    report_deadline_seconds: int
    primacy: int
    verify: str
    desired_state: str
    ttl_seconds_after_finished: int | None
    status: Mapping[str, Any]

    @property
    def phase(self) -> Phase:
        """The phase its stored status shows."""
        return Phase(self.status.get("phase") or Phase.SUBMITTED)

    @property
    def accept_by_us(self) -> int:
        """The instant after which an agent refuses to accept it."""
        return accept_by_us(self.start_us, self.start_deadline_seconds)

    @property
    def end_us(self) -> int:
        """The planned end without delays."""
        return self.start_us + self.duration_seconds * SECOND_US

    @property
    def latest_end_us(self) -> int:
        """The latest end that its policies allow an agent."""
        late = self.start_deadline_seconds if self.late_policy == "KeepDuration" else 0
        return self.end_us + (self.randomize_start_seconds + late) * SECOND_US

    @property
    def in_flight(self) -> bool:
        """Whether a gateway may hold it: from submission to a terminal phase."""
        return not self.phase.terminal and (
            self.meta.holds_finalizer or self.phase is not Phase.SUBMITTED
        )

    @property
    def is_unreverted(self) -> bool:
        """Whether its end was told before its device was reverted, and that is still to come."""
        return self.phase.terminal and any(
            (each["type"], each["status"]) == ("Reverted", "False")
            for each in self.status.get("conditions", [])
        )

    def is_of_an_earlier(self, asset: Asset) -> bool:
        """Tell whether it was submitted before this asset was re-created under its name."""
        submitted = self.status.get("timeline", {}).get("submittedAt")
        return submitted is not None and asset.meta.created_us > parse_instant(submitted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A CertificateRequest that cert-manager made for one of our Certificates."""

    meta: Meta
    asset_name: str
    certificate_name: str
    certificate_uid: str
    revision: int
    issuer_kind: str
    issuer_name: str
    is_ca: bool
    usages: frozenset[str]
    csr: Csr | None
    issued: Issued | None
    conditions: tuple[Mapping[str, Any], ...]

    def condition(self, kind: str) -> Mapping[str, Any]:
        """Return the condition of this type, or an empty mapping."""
        return next((each for each in self.conditions if each.get("type") == kind), {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A cert-manager Certificate of ours."""

    meta: Meta
    asset_name: str
    spec: Mapping[str, Any]
    conditions: tuple[Mapping[str, Any], ...]
    seen_us: int

    def is_true(self, kind: str) -> bool:
        """Tell whether the condition of this type is True."""
        return any(
            each.get("type") == kind and each.get("status") == "True" for each in self.conditions
        )


def read_meta(manifest: Mapping[str, Any]) -> Meta:
    """Read the metadata of any object."""
    metadata = manifest["metadata"]
    deleting = metadata.get("deletionTimestamp")
    return Meta(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        resource_version=metadata["resourceVersion"],
        created_us=parse_instant(metadata["creationTimestamp"]),
        deleting_us=parse_instant(deleting) if deleting else None,
        finalizers=tuple(metadata.get("finalizers", ())),
    )


def read_asset(manifest: Mapping[str, Any]) -> Asset:
    """Read a DERAsset.

    Raises:
        ValueError: Its spec is not one of this version.
    """
    spec = DERAssetSpec.model_validate(manifest["spec"])
    ratings, limits, fallback = spec.ratings, spec.limits, spec.fallback
    verification, lift = spec.verification or Verification(), spec.identity.lift
    return Asset(
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
        status=manifest.get("status", {}),
    )


def read_dispatch(manifest: Mapping[str, Any]) -> Dispatch:
    """Read a Dispatch. One without a start begins at its creation, which has whole seconds.

    Raises:
        ValueError: Its spec is not one of this version.
    """
    meta, spec = read_meta(manifest), DispatchSpec.model_validate(manifest["spec"])
    return Dispatch(
        meta=meta,
        asset_name=spec.asset_ref.name,
        mode=spec.setpoint.mode,
        watts=spec.setpoint.watts,
        start_us=to_us(spec.start_time) if spec.start_time else meta.created_us,
        duration_seconds=spec.duration_seconds,
        start_deadline_seconds=spec.accept_within_seconds,
        randomize_start_seconds=spec.randomize_start_seconds,
        late_policy=spec.late_policy,
        report_deadline_seconds=spec.report_deadline_seconds,
        primacy=spec.primacy,
        verify=spec.verify,
        desired_state=spec.desired_state,
        ttl_seconds_after_finished=spec.ttl_seconds_after_finished,
        status=manifest.get("status", {}),
    )


def read_request(manifest: Mapping[str, Any]) -> Request:
    """Read a CertificateRequest; what is in it that cannot be read counts as absent."""
    metadata, spec = manifest["metadata"], manifest["spec"]
    status, annotations = manifest.get("status", {}), metadata.get("annotations", {})
    owner: Mapping[str, Any] = next(
        (
            each
            for each in metadata.get("ownerReferences", ())
            if each.get("kind") == "Certificate" and each.get("controller")
        ),
        {},
    )
    revision = annotations.get(_CERTIFICATE_REVISION, "0")
    return Request(
        meta=read_meta(manifest),
        asset_name=metadata.get("labels", {}).get(ASSET_LABEL, ""),
        certificate_name=annotations.get(_CERTIFICATE_NAME, ""),
        certificate_uid=owner.get("uid", ""),
        revision=int(revision) if revision.isdecimal() else 0,
        issuer_kind=spec["issuerRef"].get("kind", "Issuer"),
        issuer_name=spec["issuerRef"]["name"],
        is_ca=spec.get("isCA", False),
        usages=frozenset(spec.get("usages", ())),
        csr=read_csr(spec["request"]),
        issued=read_issued(status["certificate"]) if status.get("certificate") else None,
        conditions=tuple(status.get("conditions", ())),
    )


def read_certificate(manifest: Mapping[str, Any], seen_us: int) -> Certificate:
    """Read a Certificate as it was at ``seen_us``; Certificates are not watched."""
    return Certificate(
        meta=read_meta(manifest),
        asset_name=manifest["metadata"].get("labels", {}).get(ASSET_LABEL, ""),
        spec=manifest["spec"],
        conditions=tuple(manifest.get("status", {}).get("conditions", ())),
        seen_us=seen_us,
    )
