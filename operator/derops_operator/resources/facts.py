"""What the operator keeps of each resource: slim, frozen, without managed fields.

A manifest is read once, when it arrives; everything behind works on these values.
"""

import hashlib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple

from derops.admission import modes_of
from derops.lifecycle import Phase
from derops.modes import LatePolicy
from derops.resources.derassets import DERAssetSpec, Verification
from derops.resources.dispatches import DispatchSpec
from derops.schedules import SECOND_US, accept_by_us
from derops_operator.resources.certificates import Csr, Issued
from derops_operator.resources.instants import format_instant, parse_instant, to_us

FINALIZER = "derops.io/in-flight"
"""On a Dispatch from submission to its terminal phase; on a DERAsset while it has such a one, or
one that its device may still hold."""

MANAGED_BY = {"app.kubernetes.io/managed-by": "derops"}
"""Label of everything the operator creates."""

ASSET_LABEL = "derops.io/asset"
"""Label of what belongs to one asset; cert-manager copies it from a Certificate to its requests."""

CREATOR_ANNOTATION = "derops.io/created-by"
"""On a Dispatch: who ordered it, as admission policies and the API wrote it."""

UNKNOWN_CREATOR = "unknown"
"""Who ordered a Dispatch where nobody can know."""

CREATOR_LIMIT = 512
"""Characters of who ordered a Dispatch; the CRD allows no more."""

_CERT_MANAGER_GROUPS = ("", "cert-manager.io")
"""An empty group means cert-manager's own."""

_LONGEST_TEXT = 1024
_MOST_FINALIZERS = 100
_CERTIFICATE_FIELDS = (
    "secretName",
    "duration",
    "renewBefore",
    "uris",
    "usages",
    "privateKey",
    "issuerRef",
    "revisionHistoryLimit",
)


class Kind(StrEnum):
    """The kinds the operator works on, by their plural names."""

    ASSET = "derassets"
    DISPATCH = "dispatches"
    REQUEST = "certificaterequests"
    CERTIFICATE = "certificates"


class ObjectKey(NamedTuple):
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
        return modes_of(self.type, self.status.get("capability", {}).get("modes"))

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
    claimed_creator: str
    """Who ordered it, as its annotation says; empty = it has none. Anybody may have written it."""

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
        late = self.start_deadline_seconds if self.late_policy == LatePolicy.KEEP_DURATION else 0
        return self.end_us + (self.randomize_start_seconds + late) * SECOND_US

    @property
    def in_flight(self) -> bool:
        """Whether a gateway may hold it: from submission to a terminal phase.

        The finalizer alone does not tell: an uninstallation takes it off by force.
        """
        return not self.phase.terminal and (
            self.meta.holds_finalizer
            or self.phase is not Phase.SUBMITTED
            or self.submitted_us is not None
        )

    @property
    def is_unreverted(self) -> bool:
        """Whether its end was told before its device was reverted, and that is still to come."""
        return self.phase.terminal and any(
            (each["type"], each["status"]) == ("Reverted", "False")
            for each in self.status.get("conditions", [])
        )

    @property
    def submitted_us(self) -> int | None:
        """When it was submitted, where its stored status says so."""
        submitted = self.status.get("timeline", {}).get("submittedAt")
        return None if submitted is None else parse_instant(submitted)

    def creator(self, guarded_since_us: int | None) -> str:
        """Return who ordered it: as its status says already, else as far as can be believed.

        Args:
            guarded_since_us: Since when nobody can forge its annotation; None = anybody can.
        """
        if known := self.status.get("createdBy"):
            return str(known)
        if guarded_since_us is None or self.meta.created_us < guarded_since_us:
            return UNKNOWN_CREATOR
        return self.claimed_creator or UNKNOWN_CREATOR

    def is_of_an_earlier(self, asset: Asset) -> bool:
        """Tell whether it was submitted before this asset was re-created under its name."""
        submitted_us = self.submitted_us
        return submitted_us is not None and asset.meta.created_us > submitted_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A CertificateRequest that says it is for one of our Certificates; anybody may say so."""

    meta: Meta
    asset_name: str
    certificate_uid: str
    """Of the Certificate that owns it."""

    username: str
    """Who created it, as the API server told cert-manager's webhook; nobody can change it."""

    duration_seconds: float | None
    issuer_kind: str
    issuer_name: str
    is_ca: bool
    usages: frozenset[str]
    csr: Csr | None
    issued: Issued | None
    ca_sha256: str
    """Of what the issuer said its CA is, as it wrote it; empty = nothing."""

    problem: str = ""
    """Why what is inside could not be read; it counts as absent."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Unreadable:
    """An object that cannot be read, as far as it says who it is."""

    kind: Kind
    meta: Meta
    asset_name: str
    """The asset that it is or belongs to; empty = it does not even tell that."""

    may_be_held: bool
    """Whether a gateway may hold it: a Dispatch that was never given to one is with none."""

    problem: str

    @property
    def key(self) -> ObjectKey:
        """Where it is."""
        return ObjectKey(self.kind, self.meta.namespace, self.meta.name)


Fact = Asset | Dispatch | Request | Certificate


def read_meta(manifest: Mapping[str, Any]) -> Meta:
    """Read the metadata of any object."""
    metadata = manifest["metadata"]
    deleting = metadata.get("deletionTimestamp")
    return Meta(
        namespace=_text(metadata["namespace"]),
        name=_text(metadata["name"]),
        uid=_text(metadata["uid"]),
        generation=int(metadata.get("generation", 0)),
        resource_version=_text(metadata["resourceVersion"]),
        created_us=parse_instant(metadata["creationTimestamp"]),
        deleting_us=parse_instant(deleting) if deleting else None,
        finalizers=read_finalizers(metadata),
    )


def read_finalizers(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Read the finalizers of any object; they are kept, so their number has a bound."""
    finalizers = metadata.get("finalizers", ())
    if len(finalizers) > _MOST_FINALIZERS:
        raise ValueError(f"{len(finalizers)} finalizers; at most {_MOST_FINALIZERS} are read")
    return tuple(_text(each) for each in finalizers)


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
        status=_status(manifest),
    )
    # What others ask of it must not fail in the middle of what they do.
    _ = asset.modes, asset.quarantine_reason
    return asset


def read_dispatch(manifest: Mapping[str, Any]) -> Dispatch:
    """Read a Dispatch. One without a start begins at its creation, which has whole seconds."""
    meta, spec = read_meta(manifest), DispatchSpec.model_validate(manifest["spec"])
    dispatch = Dispatch(
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
        claimed_creator=_claimed_creator(manifest["metadata"]),
        status=_status(manifest),
    )
    # What others ask of it must not fail in the middle of what they do.
    _ = dispatch.in_flight, dispatch.is_unreverted, dispatch.submitted_us
    _ = format_instant(dispatch.start_us), format_instant(dispatch.latest_end_us)
    return dispatch


def read_request(
    manifest: Mapping[str, Any],
    csr: Csr | None = None,
    issued: Issued | None = None,
    problem: str = "",
) -> Request:
    """Read a CertificateRequest, but for what lies in its bytes.

    Nothing here comes from its annotations: whoever may create requests writes what they like.

    Args:
        manifest: Of the request.
        csr: What ``spec.request`` says.
        issued: What ``status.certificate`` says.
        problem: Why one of them could not be read.
    """
    metadata, spec = manifest["metadata"], manifest["spec"]
    issuer = spec["issuerRef"]
    authority = _status(manifest).get("ca", "")
    ours = _text(issuer.get("group", "")) in _CERT_MANAGER_GROUPS
    owner: Mapping[str, Any] = next(
        (
            each
            for each in metadata.get("ownerReferences", ())
            if each.get("kind") == "Certificate" and each.get("controller")
        ),
        {},
    )
    return Request(
        meta=read_meta(manifest),
        asset_name=_text(metadata.get("labels", {}).get(ASSET_LABEL, "")),
        certificate_uid=_text(owner.get("uid", "")),
        username=_text(spec.get("username", "")),
        duration_seconds=duration_seconds(spec.get("duration")),
        issuer_kind=_text(issuer.get("kind", "Issuer")) if ours else "",
        issuer_name=_text(issuer["name"]),
        is_ca=bool(spec.get("isCA", False)),
        usages=frozenset(_text(each) for each in spec.get("usages", ())),
        csr=csr,
        issued=issued,
        ca_sha256=_digest(authority) if isinstance(authority, str) and authority else "",
        problem=problem,
        conditions=_conditions(_status(manifest)),
    )


def read_certificate(manifest: Mapping[str, Any], seen_us: int) -> Certificate:
    """Read a Certificate as it was at ``seen_us``; Certificates are not watched."""
    spec = manifest["spec"]
    return Certificate(
        meta=read_meta(manifest),
        asset_name=_text(manifest["metadata"].get("labels", {}).get(ASSET_LABEL, "")),
        spec={name: spec[name] for name in _CERTIFICATE_FIELDS if name in spec},
        conditions=_conditions(_status(manifest)),
        seen_us=seen_us,
    )


def duration_seconds(value: object) -> float | None:
    """Return the seconds of a Go duration in hours, minutes and seconds; None = it is none.

    The API server may write 3600s as 1h0m0s.
    """
    if not isinstance(value, str) or not _DURATION.fullmatch(value):
        return None
    return sum(float(number) * _SECONDS[unit] for number, unit in _PART.findall(value))


_PART = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,9})?)([hms])")
_DURATION = re.compile(f"(?:{_PART.pattern}){{1,3}}")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}


def _status(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    status: object = manifest.get("status", {})
    if not isinstance(status, Mapping):
        raise TypeError("status is no object")
    return status


def _conditions(status: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    conditions = tuple(status.get("conditions", ()))
    if not all(isinstance(each, Mapping) for each in conditions):
        raise TypeError("a condition is no object")
    return conditions


def _claimed_creator(metadata: Mapping[str, Any]) -> str:
    """Return what the annotation says; where it could not be shown whole, a digest tells it."""
    return sys.intern(readable(str(metadata.get("annotations", {}).get(CREATOR_ANNOTATION, ""))))


def readable(name: str) -> str:
    """Return a name as it is, if it can be shown; else what can be shown of it, and its digest.

    So two names never become one, and none is longer than ``CREATOR_LIMIT``.
    """
    shown = "".join(each if each.isprintable() else "\ufffd" for each in name[: CREATOR_LIMIT + 1])
    if shown == name and len(name) <= CREATOR_LIMIT:
        return name
    digest = f" (sha256 {_digest(name)})"
    return shown[: CREATOR_LIMIT - len(digest)] + digest


def _digest(text: str) -> str:
    return sys.intern(hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest())


def _text(value: object) -> str:
    """Return a text, which stands in memory once: thousands of objects have names alike."""
    if not isinstance(value, str):
        raise TypeError(f"{type(value).__name__} where a text belongs")
    if len(value) > _LONGEST_TEXT:
        raise ValueError(f"a name of {len(value)} characters; at most {_LONGEST_TEXT} are read")
    return sys.intern(value)
