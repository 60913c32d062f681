"""What a part of the log becomes: values that any database could store."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import date, timedelta
from typing import NamedTuple, Self
from uuid import UUID

import numpy as np
from numpy.typing import NDArray

from derops.lifecycle import Phase
from derops.wire.v1 import agent_pb2, log_pb2

QUANTITIES: dict[int, str] = {
    number: name.lower() for name, number in agent_pb2.Quantity.items() if number
}
"""Number of each standard quantity, and its column in ``telemetry``."""

_EPOCH = date(1970, 1, 1)
_DAY_US = 86_400_000_000

_TERMINAL = frozenset(phase for phase in Phase if phase.terminal)

CLOCK_OFFSET = "clock_offset_seconds"

NUMBERS: tuple[str, ...] = (*QUANTITIES.values(), CLOCK_OFFSET)
"""The columns of ``telemetry`` that may be absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Rows of ``telemetry`` by column. Source and asset are indices into the batch."""

    source: NDArray[np.int32]
    asset: NDArray[np.int32]
    ts_us: NDArray[np.int64]
    received_us: NDArray[np.int64]
    values: Mapping[str, NDArray[np.float64]]
    """By column, of the ``NUMBERS`` that occur; NaN = absent."""

    @classmethod
    def none(cls) -> Self:
        """Return no rows."""
        index, time_us = np.empty(0, "i4"), np.empty(0, "i8")
        return cls(source=index, asset=index, ts_us=time_us, received_us=time_us, values={})

    def __len__(self) -> int:
        return len(self.ts_us)

    def __getitem__(self, which: slice | NDArray[np.bool_]) -> Self:
        """Return some of the rows."""
        return replace(
            self,
            source=self.source[which],
            asset=self.asset[which],
            ts_us=self.ts_us[which],
            received_us=self.received_us[which],
            values={name: values[which] for name, values in self.values.items()},
        )


class AssetKey(NamedTuple):
    """The key of an asset; its uid tells re-created assets of one name apart."""

    namespace: str
    name: str
    uid: str


class LogSource(NamedTuple):
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
class MeasurementRows:
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

    source: int
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
    created_by: str | None = None
    """Who ordered the dispatch; None = it was not told."""

    request_id: str | None = None
    """Of the call that ordered it; None = none was told."""


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

    sources: list[LogSource]
    assets: dict[AssetKey, int] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples.none)
    """The rows of ``telemetry``."""

    measurements: list[MeasurementRows] = field(default_factory=list)
    gaps: list[GapRow] = field(default_factory=list)
    events: list[EventRow] = field(default_factory=list)
    connections: list[ConnectionRow] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    def ended(self) -> set[tuple[str, str]]:
        """Return the dispatches whose end is told, by uid and subject."""
        subjects = [f"{asset.namespace}/{asset.name}" for asset in self.assets]
        return {
            (row.dispatch_uid, subjects[row.asset]) for row in self.events if row.phase in _TERMINAL
        }

    def days(self) -> set[date]:
        """Return the days (UTC) that have samples or measurements."""
        times = [self.samples.ts_us, *(each.ts_us for each in self.measurements)]
        numbers = {number for ts_us in times if len(ts_us) for number in _days_of(ts_us)}
        return {_EPOCH + timedelta(days=number) for number in numbers}


def _days_of(ts_us: NDArray[np.int64]) -> list[int]:
    first, last = int(ts_us.min()) // _DAY_US, int(ts_us.max()) // _DAY_US
    if last - first < 2:  # as a rule; to sort all times takes twenty times as long
        return [first, last]
    return [int(day) for day in np.unique(ts_us // _DAY_US)]
