from derops.wire.v1 import agent_pb2 as _agent_pb2
from derops.wire.v1 import dispatch_pb2 as _dispatch_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class EntryKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ENTRY_KIND_UNSPECIFIED: _ClassVar[EntryKind]
    TELEMETRY: _ClassVar[EntryKind]
    GAP: _ClassVar[EntryKind]
    AGENT_REPORT: _ClassVar[EntryKind]
    HEADEND_TRANSITION: _ClassVar[EntryKind]
    CONNECTION: _ClassVar[EntryKind]
ENTRY_KIND_UNSPECIFIED: EntryKind
TELEMETRY: EntryKind
GAP: EntryKind
AGENT_REPORT: EntryKind
HEADEND_TRANSITION: EntryKind
CONNECTION: EntryKind

class LogRecord(_message.Message):
    __slots__ = ("entries",)
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[LogEntry]
    def __init__(self, entries: _Optional[_Iterable[_Union[LogEntry, _Mapping]]] = ...) -> None: ...

class LogEntry(_message.Message):
    __slots__ = ("kind", "asset", "received_us", "body", "clock_offset_milliseconds", "refused")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ASSET_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_US_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    CLOCK_OFFSET_MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    kind: EntryKind
    asset: _dispatch_pb2.AssetId
    received_us: int
    body: bytes
    clock_offset_milliseconds: int
    refused: str
    def __init__(self, kind: _Optional[_Union[EntryKind, str]] = ..., asset: _Optional[_Union[_dispatch_pb2.AssetId, _Mapping]] = ..., received_us: _Optional[int] = ..., body: _Optional[bytes] = ..., clock_offset_milliseconds: _Optional[int] = ..., refused: _Optional[str] = ...) -> None: ...

class StoredBatch(_message.Message):
    __slots__ = ("t0_us", "dt_us", "columns")
    class StoredColumn(_message.Message):
        __slots__ = ("quantity", "name", "values")
        QUANTITY_FIELD_NUMBER: _ClassVar[int]
        NAME_FIELD_NUMBER: _ClassVar[int]
        VALUES_FIELD_NUMBER: _ClassVar[int]
        quantity: _agent_pb2.Quantity
        name: str
        values: bytes
        def __init__(self, quantity: _Optional[_Union[_agent_pb2.Quantity, str]] = ..., name: _Optional[str] = ..., values: _Optional[bytes] = ...) -> None: ...
    T0_US_FIELD_NUMBER: _ClassVar[int]
    DT_US_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    t0_us: int
    dt_us: _containers.RepeatedScalarFieldContainer[bytes]
    columns: _containers.RepeatedCompositeFieldContainer[StoredBatch.StoredColumn]
    def __init__(self, t0_us: _Optional[int] = ..., dt_us: _Optional[_Iterable[bytes]] = ..., columns: _Optional[_Iterable[_Union[StoredBatch.StoredColumn, _Mapping]]] = ...) -> None: ...

class ConnectionEvent(_message.Message):
    __slots__ = ("event", "reason", "message", "epoch", "peer", "serial_number", "replica")
    EVENT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    SERIAL_NUMBER_FIELD_NUMBER: _ClassVar[int]
    REPLICA_FIELD_NUMBER: _ClassVar[int]
    event: str
    reason: str
    message: str
    epoch: int
    peer: str
    serial_number: str
    replica: str
    def __init__(self, event: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ..., epoch: _Optional[int] = ..., peer: _Optional[str] = ..., serial_number: _Optional[str] = ..., replica: _Optional[str] = ...) -> None: ...
