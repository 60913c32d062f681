"""Telemetry to rows: each batch is checked by itself, then all of a round become rows at once.

A call of numpy takes about a microsecond, whatever the array. Called for each batch, numpy would
take most of the writer's time.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from derops.wire.v1 import agent_pb2, log_pb2
from derops_headend.writing.refusals import (
    MAX_AHEAD_US,
    MAX_LATE_US,
    MAX_NAME,
    MAX_TIME_US,
    MAX_UNNOTED_US,
    EntryRefusedError,
    clean,
)
from derops_headend.writing.rows import CLOCK_OFFSET, QUANTITIES, MeasurementRows, Samples

_VALUE = np.dtype("<f8")
_ABSENT = np.array([np.nan], _VALUE).tobytes()
_CONTINUED = bytes(range(128, 256))
"""The bytes of a varint but for its last."""

_MAX_VARINT = 10


class Checked(NamedTuple):
    """A batch whose parts fit together; its times are not checked yet."""

    source: int
    asset: int
    received_us: int
    clock_offset_milliseconds: int | None
    """What the gateway said."""

    t0_us: int
    samples: int
    """How many it has."""

    dt_us: bytes
    """The varints, as many as samples, as they are on the wire."""

    columns: dict[str, bytes]
    """Values by the name of the standard quantity, as they are on the wire."""

    points: dict[str, bytes]
    """The same of what has no column of its own."""


class Converted(NamedTuple):
    """What batches become; a batch with infinite values keeps the others."""

    samples: Samples
    measurements: list[MeasurementRows]
    infinite: dict[int, dict[str, int]]
    """How many values were infinite, by source and quantity."""

    refused: dict[int, EntryRefusedError]
    """Batches whose times are impossible, by source. They have no rows."""


class _Times(NamedTuple):
    """The times of all samples, and the last time of each batch."""

    ts_us: NDArray[np.int64]
    last_us: NDArray[np.int64]
    refused: dict[int, EntryRefusedError]


def check(source: int, asset: int, entry: log_pb2.LogEntry) -> Checked:
    """Return a batch that fits together.

    Raises:
        EntryRefusedError: It does not.
        DecodeError: It is no batch.
    """
    try:
        return _check(source, asset, entry, entry.body)
    except EntryRefusedError:
        # protobuf allows to send a packed field in pieces or unpacked. What our gateway serialises
        # is in one piece; what another program wrote becomes so.
        whole = agent_pb2.TelemetryBatch.FromString(entry.body).SerializeToString()
        return _check(source, asset, entry, whole)


def _check(source: int, asset: int, entry: log_pb2.LogEntry, body: bytes) -> Checked:
    message = log_pb2.StoredBatch.FromString(body)
    dt_us, count = _dt_us(message)
    columns, points = _columns(message, count)
    said_ms = (
        entry.clock_offset_milliseconds if entry.HasField("clock_offset_milliseconds") else None
    )
    return Checked(
        source, asset, entry.received_us, said_ms, message.t0_us, count, dt_us, columns, points
    )


def _dt_us(message: log_pb2.StoredBatch) -> tuple[bytes, int]:
    """Return the times of the samples as varints, and how many there are."""
    pieces = message.dt_us
    if len(pieces) != 1:
        raise EntryRefusedError("NoSamples", "the batch has no times")
    (dt_us,) = pieces
    count = len(dt_us.translate(None, _CONTINUED))
    if not count or dt_us[-1] > 127:
        raise EntryRefusedError("NoSamples", "the batch has no times, or the last one has no end")
    return dt_us, count


def _columns(message: log_pb2.StoredBatch, count: int) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Return the values of standard quantities, and those of other points."""
    size = count * _VALUE.itemsize
    columns: dict[str, bytes] = {}
    points: dict[str, bytes] = {}
    for column in message.columns:
        values, standard = column.values, QUANTITIES.get(column.quantity)
        if len(values) != size:
            found = len(values) // _VALUE.itemsize
            name = standard or _name_of(column)
            raise EntryRefusedError(
                "UnequalColumns", f"{found} values of {name} for {count} samples"
            )
        if standard:
            columns[standard] = values
        else:
            points[_name_of(column)] = values
    if len(columns.keys() | points.keys() if points else columns) != len(message.columns):
        raise EntryRefusedError("DuplicateColumn", "two columns have one name")
    return columns, points


def to_rows(batches: Sequence[Checked]) -> Converted:
    """Return the rows of all batches whose times are possible, in their order."""
    if not batches:
        return Converted(Samples.none(), [], {}, {})
    counts = np.array([each.samples for each in batches])
    received_us = np.array([each.received_us for each in batches])
    times = _times(batches, counts, received_us)
    if times.refused:
        others = to_rows([each for each in batches if each.source not in times.refused])
        return others._replace(refused=times.refused)
    infinite: dict[int, dict[str, int]] = {}
    samples, present = _samples(batches, counts, received_us, times, infinite)
    return Converted(
        samples if present.all() else samples[present],
        _measurements(batches, samples.source, times.ts_us, infinite),
        infinite,
        {},
    )


def _samples(
    batches: Sequence[Checked],
    counts: NDArray[np.int64],
    received_us: NDArray[np.int64],
    times: _Times,
    infinite: dict[int, dict[str, int]],
) -> tuple[Samples, NDArray[np.bool_]]:
    """Return a row for each time, and which of them have a value at all."""
    sources = np.repeat(np.array([each.source for each in batches], "i4"), counts)
    values: dict[str, NDArray[np.float64]] = {}
    present = np.zeros(len(sources), bool)
    for name in QUANTITIES.values():
        parts = [each.columns.get(name) for each in batches]
        if any(parts):
            filled = [
                _ABSENT * each.samples if part is None else part
                for part, each in zip(parts, batches, strict=True)
            ]
            values[name], known = _without_infinite(b"".join(filled), name, sources, infinite)
            present |= known
    offset_seconds = _clock_offset_seconds(batches, times.last_us - received_us)
    if not np.isnan(offset_seconds).all():
        values[CLOCK_OFFSET] = np.repeat(offset_seconds, counts)
    samples = Samples(
        source=sources,
        asset=np.repeat(np.array([each.asset for each in batches], "i4"), counts),
        ts_us=times.ts_us,
        received_us=np.repeat(received_us, counts),
        values=values,
    )
    return samples, present


def _measurements(
    batches: Sequence[Checked],
    sources: NDArray[np.int32],
    ts_us: NDArray[np.int64],
    infinite: dict[int, dict[str, int]],
) -> list[MeasurementRows]:
    found = []
    end = 0
    for batch in batches:
        first, end = end, end + batch.samples
        for name, data in batch.points.items():
            values, known = _without_infinite(data, name, sources[first:end], infinite)
            if known.any():
                found.append(
                    MeasurementRows(
                        source=batch.source,
                        asset=batch.asset,
                        name=name,
                        ts_us=ts_us[first:end][known],
                        values=values[known],
                    )
                )
    return found


def _without_infinite(
    data: bytes, name: str, sources: NDArray[np.int32], infinite: dict[int, dict[str, int]]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return values and which of them are known; count under their source what is infinite."""
    values = np.frombuffer(data, _VALUE)
    known = np.isfinite(values)
    if not known.all():
        wrong = np.isinf(values)
        for source in sources[wrong].tolist():
            of_source = infinite.setdefault(source, {})
            of_source[name] = of_source.get(name, 0) + 1
        values = np.where(wrong, np.nan, values)
    return values, known


def _times(
    batches: Sequence[Checked], counts: NDArray[np.int64], received_us: NDArray[np.int64]
) -> _Times:
    offsets = _decode_varints(b"".join([each.dt_us for each in batches]))
    first_at = np.cumsum(counts) - counts
    t0_us = np.array([each.t0_us for each in batches])
    least, most = np.minimum.reduceat(offsets, first_at), np.maximum.reduceat(offsets, first_at)
    first_us, last_us = t0_us + least, t0_us + most
    # Bounds of both parts too, as the sum may have overflowed into a good time.
    good = (
        (t0_us > -MAX_TIME_US) & (t0_us < MAX_TIME_US)
        & (least > -MAX_TIME_US) & (most < MAX_TIME_US)
        & (received_us - first_us <= MAX_LATE_US) & (last_us - received_us <= MAX_AHEAD_US)
    )  # fmt: skip
    refused = {
        batches[at].source: EntryRefusedError(
            "BadTime",
            f"samples from {t0_us[at]} {least[at]:+} to {most[at]:+} us,"
            f" received at {received_us[at]} us",
        )
        for at in np.flatnonzero(~good).tolist()
    }
    return _Times(offsets + np.repeat(t0_us, counts), last_us, refused)


def _decode_varints(data: bytes) -> NDArray[np.int64]:
    """Return the numbers of packed sint64; one that is too long is out of all bounds."""
    byte = np.frombuffer(data + bytes(_MAX_VARINT), "u1")
    ends = np.flatnonzero(byte[: len(data)] < 128)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    raw = np.zeros(len(ends), "u8")
    for place in range(min(int(lengths.max()), _MAX_VARINT) - 1, -1, -1):
        part = byte[starts + place] & 127
        part[lengths <= place] = 0
        raw <<= np.uint64(7)
        raw |= part
    numbers: NDArray[np.int64] = (raw >> np.uint64(1)).view("i8") ^ -(raw & np.uint64(1)).view("i8")
    numbers[lengths > _MAX_VARINT] = np.iinfo("i8").max
    return numbers


def _name_of(column: log_pb2.StoredBatch.StoredColumn) -> str:
    # A quantity of a newer agent keeps its number until this program knows its name.
    name = clean(column.name) or (f"quantity_{column.quantity}" if column.quantity else "")
    if not 0 < len(name) <= MAX_NAME:
        raise EntryRefusedError("BadColumn", f"a name of {len(name)} characters")
    return name


def _clock_offset_seconds(
    batches: Sequence[Checked], ahead_us: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the offset that the gateway told; else what keeps samples out of the future."""
    said_ms = np.array([each.clock_offset_milliseconds for each in batches], "f8")
    certain_seconds = np.where(ahead_us > MAX_UNNOTED_US, -ahead_us / 1e6, np.nan)
    return np.where(np.isnan(said_ms), certain_seconds, said_ms / 1000)
