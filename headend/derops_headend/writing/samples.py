"""Telemetry to rows: each batch is checked by itself, then all of a round become rows at once.

numpy takes about a microsecond for a call whatever the array: called for each batch, that is what
the writer would spend its time on.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from derops.wire.v1 import agent_pb2, log_pb2
from derops_headend.writing.refusing import (
    MAX_AHEAD_US,
    MAX_LATE_US,
    MAX_NAME,
    MAX_TIME_US,
    MAX_UNNOTED_US,
    RefusedError,
    clean,
)
from derops_headend.writing.rows import QUANTITIES, SAMPLE, Array, Measurements

_VALUE = np.dtype("<f8")
_ABSENT = np.array([np.nan], _VALUE).tobytes()


class Checked(NamedTuple):
    """A batch that may become rows."""

    source: int
    asset: int
    received_us: int
    clock_offset_seconds: float
    ts_us: NDArray[np.int64]
    columns: dict[str, bytes]
    """Values by the name of the standard quantity, as they are on the wire."""
    points: dict[str, bytes]
    """The same of what has no column of its own."""


class Converted(NamedTuple):
    """What batches become; a batch with infinite values keeps the others."""

    samples: Array
    measurements: list[Measurements]
    infinite: dict[int, dict[str, int]]
    """By source and quantity: how many values were infinite."""


def check(source: int, asset: int, entry: log_pb2.LogEntry) -> Checked:
    """Return a batch that fits together and whose times are possible.

    Raises:
        RefusedError: It does not, or they are not.
        DecodeError: It is no batch.
    """
    try:
        return _check(source, asset, entry, entry.body)
    except RefusedError:
        # protobuf allows to send a packed field in pieces or unpacked. What our gateway serialises
        # is in one piece; what another program wrote becomes so.
        whole = agent_pb2.TelemetryBatch.FromString(entry.body).SerializeToString()
        return _check(source, asset, entry, whole)


def _check(source: int, asset: int, entry: log_pb2.LogEntry, body: bytes) -> Checked:
    message = log_pb2.StoredBatch.FromString(body)
    ts_us, last_us = _times(message, entry.received_us)
    size = len(ts_us) * _VALUE.itemsize
    columns: dict[str, bytes] = {}
    points: dict[str, bytes] = {}
    for column in message.columns:
        standard = QUANTITIES.get(column.quantity)
        name = standard or _name_of(column)
        if name in columns or name in points:
            raise RefusedError("DuplicateColumn", f"{name} is there twice")
        values = column.values
        if len(values) != size:
            count = len(values) // _VALUE.itemsize
            raise RefusedError(
                "UnequalColumns", f"{count} values of {name} for {len(ts_us)} samples"
            )
        (columns if standard else points)[name] = values
    offset_seconds = _clock_offset_seconds(entry, last_us)
    return Checked(source, asset, entry.received_us, offset_seconds, ts_us, columns, points)


def to_rows(batches: Sequence[Checked]) -> Converted:
    """Return the rows of all batches, in their order."""
    counts = [len(each.ts_us) for each in batches]
    rows = np.empty(sum(counts), SAMPLE)
    result = Converted(rows, [], {})
    if not batches:
        return result

    def spread(values: Sequence[float]) -> Array:
        return np.repeat(np.array(values), counts)

    rows["source"] = spread([each.source for each in batches])
    rows["asset"] = spread([each.asset for each in batches])
    rows["received_us"] = spread([each.received_us for each in batches])
    rows["clock_offset_seconds"] = spread([each.clock_offset_seconds for each in batches])
    rows["ts_us"] = np.concatenate([each.ts_us for each in batches])
    present = np.zeros(len(rows), bool)
    for name in QUANTITIES.values():
        parts = [each.columns.get(name) for each in batches]
        if not any(parts):
            rows[name] = np.nan
            continue
        joined = b"".join(
            part or _ABSENT * count for part, count in zip(parts, counts, strict=True)
        )
        values, known = _without_infinite(
            joined, name, lambda at: int(rows["source"][at]), result.infinite
        )
        rows[name] = values
        present |= known
    for each in batches:
        result.measurements.extend(_measurements(each, result.infinite))
    return result if present.all() else result._replace(samples=rows[present])


def _measurements(batch: Checked, infinite: dict[int, dict[str, int]]) -> list[Measurements]:
    found = []
    for name, data in batch.points.items():
        values, known = _without_infinite(data, name, lambda _: batch.source, infinite)
        if known.any():
            found.append(
                Measurements(
                    source=batch.source,
                    asset=batch.asset,
                    name=name,
                    ts_us=batch.ts_us[known],
                    values=values[known],
                )
            )
    return found


def _without_infinite(
    data: bytes,
    name: str,
    source_at: Callable[[int], int],
    infinite: dict[int, dict[str, int]],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return values and which of them are known; count under their source what is infinite."""
    values = np.frombuffer(data, _VALUE)
    known = np.isfinite(values)
    if not known.all():
        wrong = np.isinf(values)
        for at in np.flatnonzero(wrong).tolist():
            of_source = infinite.setdefault(source_at(at), {})
            of_source[name] = of_source.get(name, 0) + 1
        values = np.where(wrong, np.nan, values)
    return values, known


def _times(message: log_pb2.StoredBatch, received_us: int) -> tuple[NDArray[np.int64], int]:
    """Return the times of the samples, and the last of them."""
    if not message.dt_us:
        raise RefusedError("NoSamples", "the batch has no times")
    offsets = np.array(message.dt_us, "i8")
    first_us, last_us = int(offsets.min()), int(offsets.max())
    # Both bounds before the sum, so that it cannot overflow into a good time.
    if not (abs(message.t0_us) < MAX_TIME_US and max(-first_us, last_us) < MAX_TIME_US):
        raise RefusedError("BadTime", f"t0 {message.t0_us} us, offsets up to {last_us} us")
    first_us += message.t0_us
    last_us += message.t0_us
    if not (received_us - first_us <= MAX_LATE_US and last_us - received_us <= MAX_AHEAD_US):
        raise RefusedError(
            "BadTime", f"samples from {first_us} to {last_us} us, received at {received_us} us"
        )
    return offsets + message.t0_us, last_us


def _name_of(column: log_pb2.StoredBatch.StoredColumn) -> str:
    # A quantity of a newer agent keeps its number until this program knows its name.
    name = clean(column.name) or (f"quantity_{column.quantity}" if column.quantity else "")
    if not 0 < len(name) <= MAX_NAME:
        raise RefusedError("BadColumn", f"a name of {len(name)} characters")
    return name


def _clock_offset_seconds(entry: log_pb2.LogEntry, last_us: int) -> float:
    """Return what the gateway said; else what is certain: no sample is from the future."""
    if entry.HasField("clock_offset_milliseconds"):
        return entry.clock_offset_milliseconds / 1000
    ahead_us = last_us - entry.received_us
    return -ahead_us / 1e6 if ahead_us > MAX_UNNOTED_US else np.nan
