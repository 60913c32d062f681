"""Arrays to PostgreSQL's binary COPY format.

A structured array with big-endian fields is the format already, but for absent values: those have a
length of -1 and no bytes. A column that is absent in all rows has no field; where a column is
absent in some, the bytes of its values are masked out.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from derops_headend.writing.rows import QUANTITIES, Array

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01, where timestamps of PostgreSQL begin."""

NUMBERS: tuple[str, ...] = (*QUANTITIES.values(), "clock_offset_seconds")
"""The columns that may be absent."""

COLUMNS: tuple[str, ...] = ("asset_id", "ts", *NUMBERS, "received_at")
"""The columns of ``telemetry`` in the order in which they are written."""

_ROWS = 2000
"""Made at once, so that the passes over them find them in the processor's cache."""

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_INT8 = ("asset_id", "ts", "received_at")


def encode_samples(
    samples: Array, asset_ids: NDArray[np.int64], *, numbered: bool = False
) -> bytes:
    """Return rows of ``telemetry`` for COPY.

    Args:
        samples: Of dtype ``SAMPLE``.
        asset_ids: The database's id for each asset index of the samples.
        numbered: Put the index of each row before its columns, for a stage.
    """
    parts = [
        _encode_rows(samples[first : first + _ROWS], asset_ids, first, numbered=numbered)
        for first in range(0, len(samples), _ROWS)
    ]
    return b"".join((_HEADER, *parts, _TRAILER))


def _encode_rows(
    samples: Array, asset_ids: NDArray[np.int64], first: int, *, numbered: bool
) -> bytes:
    """Return rows as COPY has them; ``first`` is the number of the first."""
    absent = {column: np.isnan(samples[column]) for column in NUMBERS}
    empty = tuple(column for column in NUMBERS if absent[column].all())
    rows = np.empty(len(samples), _row_type(empty, numbered))
    rows["fields"] = len(COLUMNS) + numbered
    if numbered:
        rows["row_length"], rows["row"] = 4, np.arange(first, first + len(samples))
    rows["asset_id"] = asset_ids[samples["asset"]]
    rows["ts"] = samples["ts_us"] - POSTGRES_EPOCH_US
    rows["received_at"] = samples["received_us"] - POSTGRES_EPOCH_US
    for column in COLUMNS:
        rows[f"{column}_length"] = -1 if column in empty else 8
        if column in absent and column not in empty:
            rows[column] = samples[column]
    mixed = [column for column in NUMBERS if column not in empty and absent[column].any()]
    return _without(rows, {column: absent[column] for column in mixed})


@cache
def _row_type(empty: Sequence[str], numbered: bool) -> "np.dtype[np.void]":
    fields = [("fields", ">i2")]
    if numbered:
        fields += [("row_length", ">i4"), ("row", ">i4")]
    for column in COLUMNS:
        fields.append((f"{column}_length", ">i4"))
        if column not in empty:
            fields.append((column, ">i8" if column in _INT8 else ">f8"))
    return np.dtype(fields)


def _without(rows: Array, absent: dict[str, NDArray[np.bool_]]) -> bytes:
    """Return the bytes of ``rows`` without the values that are absent."""
    if not absent:
        return rows.tobytes()
    keep = np.ones((len(rows), rows.dtype.itemsize), bool)
    for column, where in absent.items():
        rows[f"{column}_length"][where] = -1
        start = _offset(rows.dtype, column)
        keep[where, start : start + 8] = False
    return rows.view("u1").reshape(keep.shape)[keep].tobytes()


def _offset(row: "np.dtype[np.void]", field: str) -> int:
    return int(row.fields[field][1]) if row.fields else 0
