"""Arrays to PostgreSQL's binary COPY format.

A structured array with big-endian fields is the format already, but for absent values: those have a
length of -1 and no bytes, so the bytes of their values are masked out.
"""

import numpy as np
from numpy.typing import NDArray

from derops_headend.writing.rows import QUANTITIES, Array

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01, where timestamps of PostgreSQL begin."""

NUMBERS: tuple[str, ...] = (*QUANTITIES.values(), "clock_offset_seconds")
"""The columns that may be absent."""

COLUMNS: tuple[str, ...] = ("asset_id", "ts", *NUMBERS, "received_at")
"""The columns of ``telemetry`` in the order in which they are written."""

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_INT8 = ("asset_id", "ts", "received_at")
_NUMBERED_TYPES = [("fields", ">i2"), ("row_length", ">i4"), ("row", ">i4")]
_TYPES = [("fields", ">i2")]
_VALUES = [
    field
    for column in COLUMNS
    for field in ((f"{column}_length", ">i4"), (column, ">i8" if column in _INT8 else ">f8"))
]
_PLAIN, _NUMBERED = np.dtype(_TYPES + _VALUES), np.dtype(_NUMBERED_TYPES + _VALUES)


def encode_samples(
    samples: Array, asset_ids: NDArray[np.int64], *, numbered: bool = False
) -> bytes:
    """Return rows of ``telemetry`` for COPY.

    Args:
        samples: Of dtype ``SAMPLE``.
        asset_ids: The database's id for each asset index of the samples.
        numbered: Put the index of each row before its columns, for a stage.
    """
    rows = np.empty(len(samples), _NUMBERED if numbered else _PLAIN)
    rows["fields"] = len(COLUMNS) + numbered
    if numbered:
        rows["row_length"], rows["row"] = 4, np.arange(len(samples))
    for column in COLUMNS:
        rows[f"{column}_length"] = 8
    rows["asset_id"] = asset_ids[samples["asset"]]
    rows["ts"] = samples["ts_us"] - POSTGRES_EPOCH_US
    rows["received_at"] = samples["received_us"] - POSTGRES_EPOCH_US
    keep = np.ones((len(rows), rows.dtype.itemsize), bool)
    for column in NUMBERS:
        values = samples[column]
        rows[column] = values
        absent = np.isnan(values)
        if absent.any():
            rows[f"{column}_length"][absent] = -1
            start = _offset(rows.dtype, column)
            keep[absent, start : start + 8] = False
    body = rows.view("u1").reshape(len(rows), rows.dtype.itemsize)
    return _HEADER + body[keep].tobytes() + _TRAILER


def _offset(row: "np.dtype[np.void]", field: str) -> int:
    return int(row.fields[field][1]) if row.fields else 0
