"""Arrays to PostgreSQL's binary COPY format.

A structured array with big-endian fields is the format already, but for absent values: those have a
length of -1 and no bytes. A column that is absent in all rows has no field; where a column is
absent in some, the bytes of its values are masked out.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from derops_headend.writing.rows import NUMBERS, Samples

POSTGRES_EPOCH_US = 946_684_800_000_000
"""2000-01-01, where timestamps of PostgreSQL begin."""

COLUMNS: tuple[str, ...] = ("asset_id", "ts", *NUMBERS, "received_at")
"""The columns of ``telemetry`` in the order in which they are written."""

_ROWS = 900
"""Rows made at once: few enough to stay in the processor's cache."""

_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER = b"\xff\xff"
_INT8 = ("asset_id", "ts", "received_at")


def encode_samples(
    samples: Samples, asset_ids: NDArray[np.int64], *, numbered: bool = False
) -> Iterator[bytes | bytearray]:
    """Yield rows of ``telemetry`` for COPY, in parts that one after the other take the same memory.

    Args:
        samples: The rows.
        asset_ids: The database's id for each asset index of the samples.
        numbered: Put the index of each row before its columns, for a stage.
    """
    present, gaps = _present(samples)
    yield _HEADER
    for first in range(0, len(samples), _ROWS):
        part = slice(first, first + _ROWS)
        data, rows = _blank_rows(len(samples.ts_us[part]), present, numbered=numbered)
        if numbered:
            rows["row"] = np.arange(first, first + len(rows))
        rows["asset_id"] = asset_ids[samples.asset[part]]
        rows["ts"] = samples.ts_us[part] - POSTGRES_EPOCH_US
        rows["received_at"] = samples.received_us[part] - POSTGRES_EPOCH_US
        for column in present:
            rows[column] = samples.values[column][part]
        yield _without(rows, {column: gaps[column][part] for column in gaps}) if gaps else data
    yield _TRAILER


def _present(samples: Samples) -> tuple[tuple[str, ...], dict[str, NDArray[np.bool_]]]:
    """Return the columns that have any value, and the rows in which some of them lack it."""
    absent = {column: np.isnan(values) for column, values in samples.values.items()}
    present = tuple(column for column, where in absent.items() if not where.all())
    return present, {column: absent[column] for column in present if absent[column].any()}


def _blank_rows(
    count: int, present: Sequence[str], *, numbered: bool
) -> tuple[bytearray, NDArray[np.void]]:
    """Return rows that lack nothing but their values, as bytes and as an array of the same."""
    data = bytearray(_blank_row(present, numbered) * count)
    return data, np.frombuffer(data, _row_type(present, numbered))


@cache
def _row_type(present: Sequence[str], numbered: bool) -> "np.dtype[np.void]":
    fields = [("fields", ">i2")]
    if numbered:
        fields += [("row_length", ">i4"), ("row", ">i4")]
    for column in COLUMNS:
        fields.append((f"{column}_length", ">i4"))
        if column in _INT8 or column in present:
            fields.append((column, ">i8" if column in _INT8 else ">f8"))
    return np.dtype(fields)


@cache
def _blank_row(present: Sequence[str], numbered: bool) -> bytes:
    """Return a row with the lengths of its values, and zeros in their places."""
    row = np.zeros((), _row_type(present, numbered))
    row["fields"] = len(COLUMNS) + numbered
    if numbered:
        row["row_length"] = 4
    for column in COLUMNS:
        row[f"{column}_length"] = 8 if column in _INT8 or column in present else -1
    return row.tobytes()


def _without(rows: NDArray[np.void], absent: dict[str, NDArray[np.bool_]]) -> bytes:
    """Return the bytes of ``rows`` without the values that are absent."""
    keep = np.ones((len(rows), rows.dtype.itemsize), bool)
    for column, where in absent.items():
        rows[f"{column}_length"][where] = -1
        start = _offset(rows.dtype, column)
        keep[where, start : start + 8] = False
    return rows.view("u1").reshape(keep.shape)[keep].tobytes()


def _offset(row: "np.dtype[np.void]", field: str) -> int:
    return int(row.fields[field][1]) if row.fields else 0
