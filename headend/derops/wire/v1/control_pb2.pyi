from derops.wire.v1 import agent_pb2 as _agent_pb2
from derops.wire.v1 import dispatch_pb2 as _dispatch_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class OperatorMessage(_message.Message):
    __slots__ = ("version", "snapshot_begin", "asset", "dispatch", "snapshot_end", "asset_removed", "dispatch_removed", "epoch_seen", "transition", "batch", "unread")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_BEGIN_FIELD_NUMBER: _ClassVar[int]
    ASSET_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_END_FIELD_NUMBER: _ClassVar[int]
    ASSET_REMOVED_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_REMOVED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_SEEN_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    version: int
    snapshot_begin: SnapshotBegin
    asset: _dispatch_pb2.Asset
    dispatch: _dispatch_pb2.Dispatch
    snapshot_end: SnapshotEnd
    asset_removed: str
    dispatch_removed: str
    epoch_seen: EpochSeen
    transition: HeadendTransition
    batch: OperatorBatch
    unread: Unread
    def __init__(self, version: _Optional[int] = ..., snapshot_begin: _Optional[_Union[SnapshotBegin, _Mapping]] = ..., asset: _Optional[_Union[_dispatch_pb2.Asset, _Mapping]] = ..., dispatch: _Optional[_Union[_dispatch_pb2.Dispatch, _Mapping]] = ..., snapshot_end: _Optional[_Union[SnapshotEnd, _Mapping]] = ..., asset_removed: _Optional[str] = ..., dispatch_removed: _Optional[str] = ..., epoch_seen: _Optional[_Union[EpochSeen, _Mapping]] = ..., transition: _Optional[_Union[HeadendTransition, _Mapping]] = ..., batch: _Optional[_Union[OperatorBatch, _Mapping]] = ..., unread: _Optional[_Union[Unread, _Mapping]] = ...) -> None: ...

class OperatorBatch(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[OperatorMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[OperatorMessage, _Mapping]]] = ...) -> None: ...

class Unread(_message.Message):
    __slots__ = ("uid", "namespace", "asset_name")
    UID_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ASSET_NAME_FIELD_NUMBER: _ClassVar[int]
    uid: str
    namespace: str
    asset_name: str
    def __init__(self, uid: _Optional[str] = ..., namespace: _Optional[str] = ..., asset_name: _Optional[str] = ...) -> None: ...

class SnapshotBegin(_message.Message):
    __slots__ = ("operator_start_ms", "takes_batches", "era")
    OPERATOR_START_MS_FIELD_NUMBER: _ClassVar[int]
    TAKES_BATCHES_FIELD_NUMBER: _ClassVar[int]
    ERA_FIELD_NUMBER: _ClassVar[int]
    operator_start_ms: int
    takes_batches: bool
    era: int
    def __init__(self, operator_start_ms: _Optional[int] = ..., takes_batches: _Optional[bool] = ..., era: _Optional[int] = ...) -> None: ...

class SnapshotEnd(_message.Message):
    __slots__ = ("assets", "dispatches", "unread")
    ASSETS_FIELD_NUMBER: _ClassVar[int]
    DISPATCHES_FIELD_NUMBER: _ClassVar[int]
    UNREAD_FIELD_NUMBER: _ClassVar[int]
    assets: int
    dispatches: int
    unread: int
    def __init__(self, assets: _Optional[int] = ..., dispatches: _Optional[int] = ..., unread: _Optional[int] = ...) -> None: ...

class EpochSeen(_message.Message):
    __slots__ = ("asset_uid", "epoch", "serial_number", "instances", "instance_id")
    ASSET_UID_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SERIAL_NUMBER_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    asset_uid: str
    epoch: int
    serial_number: str
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    instance_id: str
    def __init__(self, asset_uid: _Optional[str] = ..., epoch: _Optional[int] = ..., serial_number: _Optional[str] = ..., instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ..., instance_id: _Optional[str] = ...) -> None: ...

class Instance(_message.Message):
    __slots__ = ("id", "opened_us", "replaced_us", "alive", "since_us")
    ID_FIELD_NUMBER: _ClassVar[int]
    OPENED_US_FIELD_NUMBER: _ClassVar[int]
    REPLACED_US_FIELD_NUMBER: _ClassVar[int]
    ALIVE_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    id: str
    opened_us: int
    replaced_us: int
    alive: bool
    since_us: int
    def __init__(self, id: _Optional[str] = ..., opened_us: _Optional[int] = ..., replaced_us: _Optional[int] = ..., alive: _Optional[bool] = ..., since_us: _Optional[int] = ...) -> None: ...

class HeadendTransition(_message.Message):
    __slots__ = ("asset", "dispatch_uid", "dispatch_name", "transition", "created_by", "request_id")
    ASSET_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_UID_FIELD_NUMBER: _ClassVar[int]
    DISPATCH_NAME_FIELD_NUMBER: _ClassVar[int]
    TRANSITION_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    asset: _dispatch_pb2.AssetId
    dispatch_uid: str
    dispatch_name: str
    transition: _dispatch_pb2.Transition
    created_by: str
    request_id: str
    def __init__(self, asset: _Optional[_Union[_dispatch_pb2.AssetId, _Mapping]] = ..., dispatch_uid: _Optional[str] = ..., dispatch_name: _Optional[str] = ..., transition: _Optional[_Union[_dispatch_pb2.Transition, _Mapping]] = ..., created_by: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ReplicaMessage(_message.Message):
    __slots__ = ("hello", "accepted_version", "session", "delivery", "report", "batch", "device", "headend")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HEADEND_FIELD_NUMBER: _ClassVar[int]
    hello: ReplicaHello
    accepted_version: int
    session: Session
    delivery: Delivery
    report: AgentReport
    batch: ReplicaBatch
    device: DeviceState
    headend: HeadendState
    def __init__(self, hello: _Optional[_Union[ReplicaHello, _Mapping]] = ..., accepted_version: _Optional[int] = ..., session: _Optional[_Union[Session, _Mapping]] = ..., delivery: _Optional[_Union[Delivery, _Mapping]] = ..., report: _Optional[_Union[AgentReport, _Mapping]] = ..., batch: _Optional[_Union[ReplicaBatch, _Mapping]] = ..., device: _Optional[_Union[DeviceState, _Mapping]] = ..., headend: _Optional[_Union[HeadendState, _Mapping]] = ...) -> None: ...

class HeadendState(_message.Message):
    __slots__ = ("links", "judged_us")
    LINKS_FIELD_NUMBER: _ClassVar[int]
    JUDGED_US_FIELD_NUMBER: _ClassVar[int]
    links: _containers.RepeatedCompositeFieldContainer[LinkState]
    judged_us: int
    def __init__(self, links: _Optional[_Iterable[_Union[LinkState, _Mapping]]] = ..., judged_us: _Optional[int] = ...) -> None: ...

class LinkState(_message.Message):
    __slots__ = ("link", "reason", "message", "since_us")
    LINK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    link: str
    reason: str
    message: str
    since_us: int
    def __init__(self, link: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., since_us: _Optional[int] = ...) -> None: ...

class DeviceState(_message.Message):
    __slots__ = ("asset_uid", "facts", "received_us", "path")
    ASSET_UID_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_US_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    asset_uid: str
    facts: _agent_pb2.DeviceFacts
    received_us: int
    path: LinkState
    def __init__(self, asset_uid: _Optional[str] = ..., facts: _Optional[_Union[_agent_pb2.DeviceFacts, _Mapping]] = ..., received_us: _Optional[int] = ..., path: _Optional[_Union[LinkState, _Mapping]] = ...) -> None: ...

class ReplicaBatch(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ReplicaMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ReplicaMessage, _Mapping]]] = ...) -> None: ...

class ReplicaHello(_message.Message):
    __slots__ = ("replica", "state_since_us", "takes_batches")
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    STATE_SINCE_US_FIELD_NUMBER: _ClassVar[int]
    TAKES_BATCHES_FIELD_NUMBER: _ClassVar[int]
    replica: str
    state_since_us: int
    takes_batches: bool
    def __init__(self, replica: _Optional[str] = ..., state_since_us: _Optional[int] = ..., takes_batches: _Optional[bool] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("asset_uid", "connected", "epoch", "since_us", "serial_number", "instance_id", "capability", "end_reason", "instances", "suspected_us")
    ASSET_UID_FIELD_NUMBER: _ClassVar[int]
    CONNECTED_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SINCE_US_FIELD_NUMBER: _ClassVar[int]
    SERIAL_NUMBER_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    CAPABILITY_FIELD_NUMBER: _ClassVar[int]
    END_REASON_FIELD_NUMBER: _ClassVar[int]
    INSTANCES_FIELD_NUMBER: _ClassVar[int]
    SUSPECTED_US_FIELD_NUMBER: _ClassVar[int]
    asset_uid: str
    connected: bool
    epoch: int
    since_us: int
    serial_number: str
    instance_id: str
    capability: _agent_pb2.Capability
    end_reason: str
    instances: _containers.RepeatedCompositeFieldContainer[Instance]
    suspected_us: int
    def __init__(self, asset_uid: _Optional[str] = ..., connected: _Optional[bool] = ..., epoch: _Optional[int] = ..., since_us: _Optional[int] = ..., serial_number: _Optional[str] = ..., instance_id: _Optional[str] = ..., capability: _Optional[_Union[_agent_pb2.Capability, _Mapping]] = ..., end_reason: _Optional[str] = ..., instances: _Optional[_Iterable[_Union[Instance, _Mapping]]] = ..., suspected_us: _Optional[int] = ...) -> None: ...

class Delivery(_message.Message):
    __slots__ = ("dispatch_uid", "generation", "written_us", "ledger_id")
    DISPATCH_UID_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    WRITTEN_US_FIELD_NUMBER: _ClassVar[int]
    LEDGER_ID_FIELD_NUMBER: _ClassVar[int]
    dispatch_uid: str
    generation: int
    written_us: int
    ledger_id: str
    def __init__(self, dispatch_uid: _Optional[str] = ..., generation: _Optional[int] = ..., written_us: _Optional[int] = ..., ledger_id: _Optional[str] = ...) -> None: ...

class AgentReport(_message.Message):
    __slots__ = ("asset_uid", "received_us", "report", "namespace", "asset_name")
    ASSET_UID_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_US_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    ASSET_NAME_FIELD_NUMBER: _ClassVar[int]
    asset_uid: str
    received_us: int
    report: _dispatch_pb2.DispatchReport
    namespace: str
    asset_name: str
    def __init__(self, asset_uid: _Optional[str] = ..., received_us: _Optional[int] = ..., report: _Optional[_Union[_dispatch_pb2.DispatchReport, _Mapping]] = ..., namespace: _Optional[str] = ..., asset_name: _Optional[str] = ...) -> None: ...
