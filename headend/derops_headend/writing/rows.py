"""What a part of the log becomes: values that any database could store."""

from dataclasses import dataclass, field
from datetime import date, timedelta
from typing import Any, NamedTuple
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from derops.wire.v1 import agent_pb2, log_pb2

QUANTITIES: dict[int, str] = {
    number: name.lower() for name, number in agent_pb2.Quantity.items() if number
}
"""Number of each standard quantity, and its column in ``telemetry``."""

_EPOCH = date(1970, 1, 1)
_DAY_US = 86_400_000_000

Array = NDArray[Any]
"""A structured array; its dtype says what is in it."""

SAMPLE = np.dtype(
    [("source", "i4"), ("asset", "i4"), ("ts_us", "i8")]
    + [(column, "f8") for column in QUANTITIES.values()]
    + [("clock_offset_seconds", "f8"), ("received_us", "i8")]
)
"""One row of ``telemetry``; source and asset are indices into the batch, NaN is absent."""


class AssetKey(NamedTuple):
    """What an asset is known by; its uid tells re-created ones of one name apart."""

    namespace: str
    name: str
    uid: str


class Source(NamedTuple):
    """An entry and where it lies in the log."""

    offset: int
    entry_index: int
    entry: log_pb2.LogEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarantined:
    """An entry that is kept as it was received, because it cannot be stored as it should be."""

    source: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurements:
    """Samples of one quantity that has no column of its own."""

    source: int
    asset: int
    name: str
    ts_us: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class GapRow:
    """Samples that an agent had to drop."""

    asset: int
    outbox_id: str
    sequence: int
    from_us: int
    to_us: int
    samples: int
    reason: str
    received_us: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFacts:
    """An agent's report as JSON, with what tells which of two is newer."""

    json: str
    ledger_id: str
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRow:
    """A step in the life of a dispatch."""

    event_id: UUID
    asset: int
    dispatch_uid: str
    dispatch_name: str | None
    actor: str
    phase: str
    reason: str
    message: str
    at_us: int
    received_us: int
    report: ReportFacts | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRow:
    """What happened to a connection."""

    source: int
    asset: int
    event: str
    reason: str
    message: str
    epoch: int
    peer: str
    serial_number: str
    replica: str
    at_us: int


@dataclass(slots=True, kw_only=True)
class Batch:
    """The rows of some entries. Assets and sources are told by their index in these lists."""

    sources: list[Source]
    assets: dict[AssetKey, int] = field(default_factory=dict)
    samples: Array = field(default_factory=lambda: np.empty(0, SAMPLE))
    """The rows of ``telemetry``."""

    measurements: list[Measurements] = field(default_factory=list)
    gaps: list[GapRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    connections: list[ConnectionRow] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    def days(self) -> set[date]:
        """Return the days (UTC) that have samples or measurements."""
        times = [self.samples["ts_us"], *(each.ts_us for each in self.measurements)]
        numbers = {int(n) for ts_us in times for n in np.unique(ts_us // _DAY_US)}
        return {_EPOCH + timedelta(days=number) for number in numbers}
