from derops.wire.v1 import dispatch_pb2 as _dispatch_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Quantity(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUANTITY_UNSPECIFIED: _ClassVar[Quantity]
    ACTIVE_POWER_WATTS: _ClassVar[Quantity]
    REACTIVE_POWER_VARS: _ClassVar[Quantity]
    VOLTAGE_VOLTS: _ClassVar[Quantity]
    FREQUENCY_HERTZ: _ClassVar[Quantity]
    STATE_OF_CHARGE_PERCENT: _ClassVar[Quantity]
    ENERGY_INJECTED_WATT_HOURS: _ClassVar[Quantity]
    ENERGY_ABSORBED_WATT_HOURS: _ClassVar[Quantity]
    TEMPERATURE_CELSIUS: _ClassVar[Quantity]
    SETPOINT_WATTS: _ClassVar[Quantity]
    MAX_GENERATION_WATTS: _ClassVar[Quantity]
    MAX_LOAD_WATTS: _ClassVar[Quantity]
    AVAILABLE_POWER_WATTS: _ClassVar[Quantity]
QUANTITY_UNSPECIFIED: Quantity
ACTIVE_POWER_WATTS: Quantity
REACTIVE_POWER_VARS: Quantity
VOLTAGE_VOLTS: Quantity
FREQUENCY_HERTZ: Quantity
STATE_OF_CHARGE_PERCENT: Quantity
ENERGY_INJECTED_WATT_HOURS: Quantity
ENERGY_ABSORBED_WATT_HOURS: Quantity
TEMPERATURE_CELSIUS: Quantity
SETPOINT_WATTS: Quantity
MAX_GENERATION_WATTS: Quantity
MAX_LOAD_WATTS: Quantity
AVAILABLE_POWER_WATTS: Quantity

class AgentMessage(_message.Message):
    __slots__ = ("hello", "telemetry", "gap", "report", "heartbeat", "bye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    GAP_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    hello: Hello
    telemetry: TelemetryBatch
    gap: Gap
    report: _dispatch_pb2.DispatchReport
    heartbeat: Heartbeat
    bye: Bye
    def __init__(self, hello: _Optional[_Union[Hello, _Mapping]] = ..., telemetry: _Optional[_Union[TelemetryBatch, _Mapping]] = ..., gap: _Optional[_Union[Gap, _Mapping]] = ..., report: _Optional[_Union[_dispatch_pb2.DispatchReport, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ...) -> None: ...

class GatewayMessage(_message.Message):
    __slots__ = ("welcome", "sync_begin", "asset", "dispatch", "sync_end", "credit", "report_ack", "heartbeat_reply", "settled", "bye", "telemetry_refused", "revision")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    SYNC_BEGIN_FIELD_NUMBER: _ClassVar[int]
    ASSET_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_FIELD_NUMBER: _ClassVar[int]
    SYNC_END_FIELD_NUMBER: _ClassVar[int]
    CREDIT_FIELD_NUMBER: _ClassVar[int]
    REPORT_ACK_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_REPLY_FIELD_NUMBER: _ClassVar[int]
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_REFUSED_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    sync_begin: SyncBegin
    asset: _dispatch_pb2.Asset
    dispatch: _dispatch_pb2.Dispatch
    sync_end: SyncEnd
    credit: TelemetryCredit
    report_ack: ReportAck
    heartbeat_reply: HeartbeatReply
    settled: Settled
    bye: Bye
    telemetry_refused: TelemetryRefused
    revision: Revision
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., sync_begin: _Optional[_Union[SyncBegin, _Mapping]] = ..., asset: _Optional[_Union[_dispatch_pb2.Asset, _Mapping]] = ..., dispatch: _Optional[_Union[_dispatch_pb2.Dispatch, _Mapping]] = ..., sync_end: _Optional[_Union[SyncEnd, _Mapping]] = ..., credit: _Optional[_Union[TelemetryCredit, _Mapping]] = ..., report_ack: _Optional[_Union[ReportAck, _Mapping]] = ..., heartbeat_reply: _Optional[_Union[HeartbeatReply, _Mapping]] = ..., settled: _Optional[_Union[Settled, _Mapping]] = ..., bye: _Optional[_Union[Bye, _Mapping]] = ..., telemetry_refused: _Optional[_Union[TelemetryRefused, _Mapping]] = ..., revision: _Optional[_Union[Revision, _Mapping]] = ...) -> None: ...

class Hello(_message.Message):
    __slots__ = ("protocol", "epoch", "instance_id", "ledger_id", "outbox_id", "software_version", "capability", "highest_revision", "first_sequence")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    LEDGER_ID_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_ID_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_VERSION_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_REVISION_FIELD_NUMBER: _ClassVar[int]
    FIRST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    epoch: int
    instance_id: str
    ledger_id: str
    outbox_id: str
    software_version: str
    capability: Capability
    highest_revision: Revision
    first_sequence: int
    def __init__(self, protocol: _Optional[int] = ..., epoch: _Optional[int] = ..., instance_id: _Optional[str] = ..., ledger_id: _Optional[str] = ..., outbox_id: _Optional[str] = ..., software_version: _Optional[str] = ..., capability: _Optional[_Union[Capability, _Mapping]] = ..., highest_revision: _Optional[_Union[Revision, _Mapping]] = ..., first_sequence: _Optional[int] = ...) -> None: ...

class Capability(_message.Message):
    __slots__ = ("modes", "driver", "firmware", "max_injection_watts", "max_absorption_watts")
    MODES_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    FIRMWARE_FIELD_NUMBER: _ClassVar[int]
    MAX_INJECTION_WATTS_FIELD_NUMBER: _ClassVar[int]
    MAX_ABSORPTION_WATTS_FIELD_NUMBER: _ClassVar[int]
    modes: _containers.RepeatedScalarFieldContainer[str]
    driver: str
    firmware: str
    max_injection_watts: int
    max_absorption_watts: int
    def __init__(self, modes: _Optional[_Iterable[str]] = ..., driver: _Optional[str] = ..., firmware: _Optional[str] = ..., max_injection_watts: _Optional[int] = ..., max_absorption_watts: _Optional[int] = ...) -> None: ...

class Revision(_message.Message):
    __slots__ = ("operator_start_ms", "counter", "era")
    OPERATOR_START_MS_FIELD_NUMBER: _ClassVar[int]
    COUNTER_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    operator_start_ms: int
    counter: int
    era: int
    def __init__(self, operator_start_ms: _Optional[int] = ..., counter: _Optional[int] = ..., era: _Optional[int] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("now_us", "heartbeat_seconds", "replica")
    NOW_US_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    now_us: int
    heartbeat_seconds: int
    replica: str
    def __init__(self, now_us: _Optional[int] = ..., heartbeat_seconds: _Optional[int] = ..., replica: _Optional[str] = ...) -> None: ...

class SyncBegin(_message.Message):
    __slots__ = ("revision",)
    REVISION_FIELD_NUMBER: _ClassVar[int]
    revision: Revision
    def __init__(self, revision: _Optional[_Union[Revision, _Mapping]] = ...) -> None: ...

class SyncEnd(_message.Message):
    __slots__ = ("revision", "count")
    REVISION_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    revision: Revision
    count: int
    def __init__(self, revision: _Optional[_Union[Revision, _Mapping]] = ..., count: _Optional[int] = ...) -> None: ...

class Settled(_message.Message):
    __slots__ = ("dispatch_uid",)
    DISPATCH_UID_FIELD_NUMBER: _ClassVar[int]
    dispatch_uid: str
    def __init__(self, dispatch_uid: _Optional[str] = ...) -> None: ...

class TelemetryCredit(_message.Message):
    __slots__ = ("acknowledged_through", "send_through")
    ACKNOWLEDGED_THROUGH_FIELD_NUMBER: _ClassVar[int]
    SEND_THROUGH_FIELD_NUMBER: _ClassVar[int]
    acknowledged_through: int
    send_through: int
    def __init__(self, acknowledged_through: _Optional[int] = ..., send_through: _Optional[int] = ...) -> None: ...

class TelemetryRefused(_message.Message):
    __slots__ = ("sequence", "reason", "message")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    reason: str
    message: str
    def __init__(self, sequence: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ReportAck(_message.Message):
    __slots__ = ("sequence",)
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    def __init__(self, sequence: _Optional[int] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("agent_sent_us", "device", "telemetry")
    AGENT_SENT_US_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    TELEMETRY_FIELD_NUMBER: _ClassVar[int]
    agent_sent_us: int
    device: DeviceFacts
    telemetry: TelemetryFacts
    def __init__(self, agent_sent_us: _Optional[int] = ..., device: _Optional[_Union[DeviceFacts, _Mapping]] = ..., telemetry: _Optional[_Union[TelemetryFacts, _Mapping]] = ...) -> None: ...

class TelemetryFacts(_message.Message):
    __slots__ = ("sampled_us", "waiting_samples", "oldest_waiting_us", "problem", "problem_since_us")
    SAMPLED_US_FIELD_NUMBER: _ClassVar[int]
    WAITING_SAMPLES_FIELD_NUMBER: _ClassVar[int]
    OLDEST_WAITING_US_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_SINCE_US_FIELD_NUMBER: _ClassVar[int]
    sampled_us: int
    waiting_samples: int
    oldest_waiting_us: int
    problem: str
    problem_since_us: int
    def __init__(self, sampled_us: _Optional[int] = ..., waiting_samples: _Optional[int] = ..., oldest_waiting_us: _Optional[int] = ..., problem: _Optional[str] = ..., problem_since_us: _Optional[int] = ...) -> None: ...

class DeviceFacts(_message.Message):
    __slots__ = ("bad_points", "more_bad_points", "silent_since_us", "silence", "fallback_problem", "fallback_not_taken")
    BAD_POINTS_FIELD_NUMBER: _ClassVar[int]
    MORE_BAD_POINTS_FIELD_NUMBER: _ClassVar[int]
    SILENT_SINCE_US_FIELD_NUMBER: _ClassVar[int]
    SILENCE_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_PROBLEM_FIELD_NUMBER: _ClassVar[int]
    FALLBACK_NOT_TAKEN_FIELD_NUMBER: _ClassVar[int]
    bad_points: _containers.RepeatedCompositeFieldContainer[BadPoint]
    more_bad_points: int
    silent_since_us: int
    silence: str
    fallback_problem: str
    fallback_not_taken: bool
    def __init__(self, bad_points: _Optional[_Iterable[_Union[BadPoint, _Mapping]]] = ..., more_bad_points: _Optional[int] = ..., silent_since_us: _Optional[int] = ..., silence: _Optional[str] = ..., fallback_problem: _Optional[str] = ..., fallback_not_taken: _Optional[bool] = ...) -> None: ...

class BadPoint(_message.Message):
    __slots__ = ("name", "raw", "problem", "since_us", "samples")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RAW_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    name: str
    raw: str
    problem: str
    since_us: int
    samples: int
    def __init__(self, name: _Optional[str] = ..., raw: _Optional[str] = ..., problem: _Optional[str] = ..., since_us: _Optional[int] = ..., samples: _Optional[int] = ...) -> None: ...

class HeartbeatReply(_message.Message):
    __slots__ = ("agent_sent_us", "gateway_received_us", "gateway_sent_us")
    AGENT_SENT_US_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_RECEIVED_US_FIELD_NUMBER: _ClassVar[int]
    GATEWAY_SENT_US_FIELD_NUMBER: _ClassVar[int]
    agent_sent_us: int
    gateway_received_us: int
    gateway_sent_us: int
    def __init__(self, agent_sent_us: _Optional[int] = ..., gateway_received_us: _Optional[int] = ..., gateway_sent_us: _Optional[int] = ...) -> None: ...

class Bye(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class TelemetryBatch(_message.Message):
    __slots__ = ("sequence", "outbox_id", "t0_us", "dt_us", "columns")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_ID_FIELD_NUMBER: _ClassVar[int]
    T0_US_FIELD_NUMBER: _ClassVar[int]
    DT_US_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    outbox_id: str
    t0_us: int
    dt_us: _containers.RepeatedScalarFieldContainer[int]
    columns: _containers.RepeatedCompositeFieldContainer[Column]
    def __init__(self, sequence: _Optional[int] = ..., outbox_id: _Optional[str] = ..., t0_us: _Optional[int] = ..., dt_us: _Optional[_Iterable[int]] = ..., columns: _Optional[_Iterable[_Union[Column, _Mapping]]] = ...) -> None: ...

class Column(_message.Message):
    __slots__ = ("quantity", "name", "values")
    QUANTITY_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    quantity: Quantity
    name: str
    values: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, quantity: _Optional[_Union[Quantity, str]] = ..., name: _Optional[str] = ..., values: _Optional[_Iterable[float]] = ...) -> None: ...

class Gap(_message.Message):
    __slots__ = ("sequence", "outbox_id", "from_us", "to_us", "samples", "reason")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OUTBOX_ID_FIELD_NUMBER: _ClassVar[int]
    FROM_US_FIELD_NUMBER: _ClassVar[int]
    TO_US_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    outbox_id: str
    from_us: int
    to_us: int
    samples: int
    reason: str
    def __init__(self, sequence: _Optional[int] = ..., outbox_id: _Optional[str] = ..., from_us: _Optional[int] = ..., to_us: _Optional[int] = ..., samples: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...
