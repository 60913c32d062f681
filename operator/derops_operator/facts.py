"""What the operator keeps of each resource: slim, frozen, without managed fields.

A manifest is read once, when it arrives; everything behind works on these values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from derops.checks import MODES_BY_TYPE
from derops.lifecycle import Phase
from derops.schedules import SECOND_US, accept_by_us, default_start_deadline_seconds
from derops_operator.certificates import Csr, Issued, read_csr, read_issued
from derops_operator.instants import parse_instant

FINALIZER = "derops.io/in-flight"
"""On a Dispatch from submission to its terminal phase, on a DERAsset while it has such a one."""

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
    energy_capacity_watt_hours: int = 0
    limit_max_injection_watts: int
    limit_max_absorption_watts: int
    max_dispatch_duration_seconds: int = 86400
    max_ramp_watts_per_second: int | None = None
    min_reserve_percent: int | None = None
    min_seconds_between_writes: int | None = None
    on_exceed: str = "Reject"
    fallback_active_power_watts: int | None = None
    fallback_max_generation_watts: int | None = None
    fallback_max_load_watts: int | None = None
    on_comms_loss: str = "Continue"
    failsafe_after_seconds: int = 0
    on_restart: str = "Resume"
    telemetry_interval_seconds: int = 10
    certificate_duration_seconds: int = 2_592_000
    operating_state: str = "InService"
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
    randomize_start_seconds: int = 0
    late_policy: str = "KeepEnd"
    report_deadline_seconds: int = 900
    primacy: int = 100
    verify: str = "Report"
    desired_state: str = "Active"
    ttl_seconds_after_finished: int | None = None
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
    """Read a DERAsset."""
    spec = manifest["spec"]
    ratings, limits = spec["ratings"], spec.get("limits", {})
    fallback = spec.get("fallback", {})
    return Asset(
        meta=read_meta(manifest),
        type=spec["type"],
        rated_max_injection_watts=ratings["maxInjectionWatts"],
        rated_max_absorption_watts=ratings["maxAbsorptionWatts"],
        energy_capacity_watt_hours=ratings.get("energyCapacityWattHours", 0),
        limit_max_injection_watts=limits.get("maxInjectionWatts", ratings["maxInjectionWatts"]),
        limit_max_absorption_watts=limits.get("maxAbsorptionWatts", ratings["maxAbsorptionWatts"]),
        max_dispatch_duration_seconds=limits.get("maxDispatchDurationSeconds", 86400),
        max_ramp_watts_per_second=limits.get("maxRampWattsPerSecond"),
        min_reserve_percent=limits.get("minReservePercent"),
        min_seconds_between_writes=limits.get("minSecondsBetweenWrites"),
        on_exceed=limits.get("onExceed", "Reject"),
        fallback_active_power_watts=fallback.get("activePowerWatts"),
        fallback_max_generation_watts=fallback.get("maxGenerationWatts"),
        fallback_max_load_watts=fallback.get("maxLoadWatts"),
        on_comms_loss=fallback.get("onCommsLoss", "Continue"),
        failsafe_after_seconds=fallback.get("failsafeAfterSeconds", 0),
        on_restart=fallback.get("onRestart", "Resume"),
        telemetry_interval_seconds=spec.get("telemetry", {}).get("intervalSeconds", 10),
        certificate_duration_seconds=spec.get("identity", {}).get(
            "certificateDurationSeconds", 2_592_000
        ),
        operating_state=spec.get("operatingState", "InService"),
        status=manifest.get("status", {}),
    )


_WATTS_FIELD = {
    "ActivePower": "activePowerWatts",
    "GenerationLimit": "maxGenerationWatts",
    "LoadLimit": "maxLoadWatts",
}


def read_dispatch(manifest: Mapping[str, Any]) -> Dispatch:
    """Read a Dispatch. One without a start begins at its creation, which has whole seconds."""
    meta, spec = read_meta(manifest), manifest["spec"]
    setpoint, start = spec["setpoint"], spec.get("startTime")
    duration = spec["durationSeconds"]
    return Dispatch(
        meta=meta,
        asset_name=spec["assetRef"]["name"],
        mode=setpoint["mode"],
        watts=setpoint.get(_WATTS_FIELD.get(setpoint["mode"], ""), 0),
        start_us=parse_instant(start) if start else meta.created_us,
        duration_seconds=duration,
        start_deadline_seconds=spec.get(
            "startDeadlineSeconds", default_start_deadline_seconds(duration)
        ),
        randomize_start_seconds=spec.get("randomizeStartSeconds", 0),
        late_policy=spec.get("latePolicy", "KeepEnd"),
        report_deadline_seconds=spec.get("reportDeadlineSeconds", 900),
        primacy=spec.get("primacy", 100),
        verify=spec.get("verify", "Report"),
        desired_state=spec.get("desiredState", "Active"),
        ttl_seconds_after_finished=spec.get("ttlSecondsAfterFinished"),
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
