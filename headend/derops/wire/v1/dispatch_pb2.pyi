from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AssetId(_message.Message):
    __slots__ = ("uid", "namespace", "name")
    UID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    uid: str
    namespace: str
    name: str
    def __init__(self, uid: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class KnownCertificate(_message.Message):
    __slots__ = ("serial_number", "public_key_sha256", "accepted_until_us")
    SERIAL_NUMBER_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_SHA256_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_UNTIL_US_FIELD_NUMBER: _ClassVar[int]
    serial_number: str
    public_key_sha256: str
    accepted_until_us: int
    def __init__(self, serial_number: _Optional[str] = ..., public_key_sha256: _Optional[str] = ..., accepted_until_us: _Optional[int] = ...) -> None: ...

class IdentityLedger(_message.Message):
    __slots__ = ("previous", "current", "next", "quarantine", "suspected_us")
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    QUARANTINE_FIELD_NUMBER: _ClassVar[int]
    SUSPECTED_US_FIELD_NUMBER: _ClassVar[int]
    previous: KnownCertificate
    current: KnownCertificate
    next: KnownCertificate
    quarantine: str
    suspected_us: int
    def __init__(self, previous: _Optional[_Union[KnownCertificate, _Mapping]] = ..., current: _Optional[_Union[KnownCertificate, _Mapping]] = ..., next: _Optional[_Union[KnownCertificate, _Mapping]] = ..., quarantine: _Optional[str] = ..., suspected_us: _Optional[int] = ...) -> None: ...

class Asset(_message.Message):
    __slots__ = ("id", "generation", "type", "rated_max_injection_watts", "rated_max_absorption_watts", "energy_capacity_watt_hours", "limit_max_injection_watts", "limit_max_absorption_watts", "max_dispatch_duration_seconds", "fallback_active_power_watts", "fallback_max_generation_watts", "fallback_max_load_watts", "on_comms_loss", "failsafe_after_seconds", "on_restart", "telemetry_interval_seconds", "operating_state", "max_ramp_watts_per_second", "min_reserve_percent", "min_seconds_between_writes", "on_exceed", "identity", "verification_tolerance_watts", "verification_tolerance_percent", "verification_settle_seconds", "verification_samples")
    ID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    RATED_MAX_INJECTION_WATTS_FIELD_NUMBER: _ClassVar[int]
    RATED_MAX_ABSORPTION_WATTS_FIELD_NUMBER: _ClassVar[int]
    ENERGY_CAPACITY_WATT_HOURS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MAX_INJECTION_WATTS_FIELD_NUMBER: _ClassVar[int]
    LIMIT_MAX_ABSORPTION_WATTS_FIELD_NUMBER: _ClassVar[int]
    MAX_DISPATCH_DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_ACTIVE_POWER_WATTS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_MAX_GENERATION_WATTS_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_MAX_LOAD_WATTS_FIELD_NUMBER: _ClassVar[int]
    ON_COMMS_LOSS_FIELD_NUMBER: _ClassVar[int]
    FAILSAFE_AFTER_SECONDS_FIELD_NUMBER: _ClassVar[int]
    ON_RESTART_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_INTERVAL_SECONDS_FIELD_NUMBER: _ClassVar[int]
    OPERATING_STATE_FIELD_NUMBER: _ClassVar[int]
    MAX_RAMP_WATTS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    MIN_RESERVE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    MIN_SECONDS_BETWEEN_WRITES_FIELD_NUMBER: _ClassVar[int]
    ON_EXCEED_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_TOLERANCE_WATTS_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_TOLERANCE_PERCENT_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_SETTLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERIFICATION_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    id: AssetId
    generation: int
    type: str
    rated_max_injection_watts: int
    rated_max_absorption_watts: int
    energy_capacity_watt_hours: int
    limit_max_injection_watts: int
    limit_max_absorption_watts: int
    max_dispatch_duration_seconds: int
    fallback_active_power_watts: int
    fallback_max_generation_watts: int
    fallback_max_load_watts: int
    on_comms_loss: str
    failsafe_after_seconds: int
    on_restart: str
    telemetry_interval_seconds: int
    operating_state: str
    max_ramp_watts_per_second: int
    min_reserve_percent: int
    min_seconds_between_writes: int
    on_exceed: str
    identity: IdentityLedger
    verification_tolerance_watts: int
    verification_tolerance_percent: int
    verification_settle_seconds: int
    verification_samples: int
    def __init__(self, id: _Optional[_Union[AssetId, _Mapping]] = ..., generation: _Optional[int] = ..., type: _Optional[str] = ..., rated_max_injection_watts: _Optional[int] = ..., rated_max_absorption_watts: _Optional[int] = ..., energy_capacity_watt_hours: _Optional[int] = ..., limit_max_injection_watts: _Optional[int] = ..., limit_max_absorption_watts: _Optional[int] = ..., max_dispatch_duration_seconds: _Optional[int] = ..., fallback_active_power_watts: _Optional[int] = ..., fallback_max_generation_watts: _Optional[int] = ..., fallback_max_load_watts: _Optional[int] = ..., on_comms_loss: _Optional[str] = ..., failsafe_after_seconds: _Optional[int] = ..., on_restart: _Optional[str] = ..., telemetry_interval_seconds: _Optional[int] = ..., operating_state: _Optional[str] = ..., max_ramp_watts_per_second: _Optional[int] = ..., min_reserve_percent: _Optional[int] = ..., min_seconds_between_writes: _Optional[int] = ..., on_exceed: _Optional[str] = ..., identity: _Optional[_Union[IdentityLedger, _Mapping]] = ..., verification_tolerance_watts: _Optional[int] = ..., verification_tolerance_percent: _Optional[int] = ..., verification_settle_seconds: _Optional[int] = ..., verification_samples: _Optional[int] = ...) -> None: ...

class Setpoint(_message.Message):
    __slots__ = ("mode", "watts")
    MODE_FIELD_NUMBER: _ClassVar[int]
    WATTS_FIELD_NUMBER: _ClassVar[int]
    mode: str
    watts: int
    def __init__(self, mode: _Optional[str] = ..., watts: _Optional[int] = ...) -> None: ...

class Dispatch(_message.Message):
    __slots__ = ("uid", "namespace", "name", "asset_uid", "generation", "setpoint", "start_us", "duration_seconds", "start_deadline_seconds", "late_policy", "randomize_start_seconds", "primacy", "verify", "cancelled", "cancel_reason", "known_phase", "created_us", "other_ledger_id", "asset_name", "request_id")
    UID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ASSET_UID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SETPOINT_FIELD_NUMBER: _ClassVar[int]
    START_US_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    START_DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    LATE_POLICY_FIELD_NUMBER: _ClassVar[int]
    RANDOMIZE_START_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRIMACY_FIELD_NUMBER: _ClassVar[int]
    VERIFY_FIELD_NUMBER: _ClassVar[int]
    CANCELLED_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REASON_FIELD_NUMBER: _ClassVar[int]
    KNOWN_PHASE_FIELD_NUMBER: _ClassVar[int]
    CREATED_US_FIELD_NUMBER: _ClassVar[int]
    OTHER_LEDGER_ID_FIELD_NUMBER: _ClassVar[int]
    ASSET_NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    uid: str
    namespace: str
    name: str
    asset_uid: str
    generation: int
    setpoint: Setpoint
    start_us: int
    duration_seconds: int
    start_deadline_seconds: int
    late_policy: str
    randomize_start_seconds: int
    primacy: int
    verify: str
    cancelled: bool
    cancel_reason: str
    known_phase: str
    created_us: int
    other_ledger_id: str
    asset_name: str
    request_id: str
    def __init__(self, uid: _Optional[str] = ..., namespace: _Optional[str] = ..., name: _Optional[str] = ..., asset_uid: _Optional[str] = ..., generation: _Optional[int] = ..., setpoint: _Optional[_Union[Setpoint, _Mapping]] = ..., start_us: _Optional[int] = ..., duration_seconds: _Optional[int] = ..., start_deadline_seconds: _Optional[int] = ..., late_policy: _Optional[str] = ..., randomize_start_seconds: _Optional[int] = ..., primacy: _Optional[int] = ..., verify: _Optional[str] = ..., cancelled: _Optional[bool] = ..., cancel_reason: _Optional[str] = ..., known_phase: _Optional[str] = ..., created_us: _Optional[int] = ..., other_ledger_id: _Optional[str] = ..., asset_name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class Transition(_message.Message):
    __slots__ = ("phase", "reason", "message", "at_us")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    AT_US_FIELD_NUMBER: _ClassVar[int]
    phase: str
    reason: str
    message: str
    at_us: int
    def __init__(self, phase: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., at_us: _Optional[int] = ...) -> None: ...

class DispatchReport(_message.Message):
    __slots__ = ("sequence", "ledger_id", "dispatch_uid", "observed_generation", "phase", "reason", "message", "transitions", "accepted_us", "planned_start_us", "planned_end_us", "applied_us", "ended_us", "reverted_us", "verified_us", "applied_watts", "clamped_by", "active_milliseconds", "within_tolerance_milliseconds", "delivered_watt_hours", "evidence", "verified", "verified_reason", "interruptions", "reversion_guard", "superseded_by", "supersedes", "clock_offset_milliseconds", "pending_error", "rounding")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    LEDGER_ID_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_UID_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TRANSITIONS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_US_FIELD_NUMBER: _ClassVar[int]
    PLANNED_START_US_FIELD_NUMBER: _ClassVar[int]
    PLANNED_END_US_FIELD_NUMBER: _ClassVar[int]
    APPLIED_US_FIELD_NUMBER: _ClassVar[int]
    ENDED_US_FIELD_NUMBER: _ClassVar[int]
    REVERTED_US_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_US_FIELD_NUMBER: _ClassVar[int]
    APPLIED_WATTS_FIELD_NUMBER: _ClassVar[int]
    CLAMPED_BY_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    WITHIN_TOLERANCE_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_WATT_HOURS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_REASON_FIELD_NUMBER: _ClassVar[int]
    INTERRUPTIONS_FIELD_NUMBER: _ClassVar[int]
    REVERSION_GUARD_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDED_BY_FIELD_NUMBER: _ClassVar[int]
    SUPERSEDES_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSET_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    PENDING_ERROR_FIELD_NUMBER: _ClassVar[int]
    ROUNDING_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    ledger_id: str
    dispatch_uid: str
    observed_generation: int
    phase: str
    reason: str
    message: str
    transitions: _containers.RepeatedCompositeFieldContainer[Transition]
    accepted_us: int
    planned_start_us: int
    planned_end_us: int
    applied_us: int
    ended_us: int
    reverted_us: int
    verified_us: int
    applied_watts: int
    clamped_by: str
    active_milliseconds: int
    within_tolerance_milliseconds: int
    delivered_watt_hours: float
    evidence: str
    verified: str
    verified_reason: str
    interruptions: int
    reversion_guard: str
    superseded_by: str
    supersedes: _containers.RepeatedScalarFieldContainer[str]
    clock_offset_milliseconds: int
    pending_error: str
    rounding: str
    def __init__(self, sequence: _Optional[int] = ..., ledger_id: _Optional[str] = ..., dispatch_uid: _Optional[str] = ..., observed_generation: _Optional[int] = ..., phase: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., transitions: _Optional[_Iterable[_Union[Transition, _Mapping]]] = ..., accepted_us: _Optional[int] = ..., planned_start_us: _Optional[int] = ..., planned_end_us: _Optional[int] = ..., applied_us: _Optional[int] = ..., ended_us: _Optional[int] = ..., reverted_us: _Optional[int] = ..., verified_us: _Optional[int] = ..., applied_watts: _Optional[int] = ..., clamped_by: _Optional[str] = ..., active_milliseconds: _Optional[int] = ..., within_tolerance_milliseconds: _Optional[int] = ..., delivered_watt_hours: _Optional[float] = ..., evidence: _Optional[str] = ..., verified: _Optional[str] = ..., verified_reason: _Optional[str] = ..., interruptions: _Optional[int] = ..., reversion_guard: _Optional[str] = ..., superseded_by: _Optional[str] = ..., supersedes: _Optional[_Iterable[str]] = ..., clock_offset_milliseconds: _Optional[int] = ..., pending_error: _Optional[str] = ..., rounding: _Optional[str] = ...) -> None: ...
