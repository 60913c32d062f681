"""What this machine can do at best, measured in the same run as what the product does."""

import os
import time
from pathlib import Path

import numpy as np
import psycopg

from derops_headend.storage.database import WriterDatabase
from derops_headend.writing.binary_copy import COLUMNS, encode_samples
from derops_headend.writing.rows import QUANTITIES, Samples

QUANTITIES_SENT = 8
_ROUND_ROWS = 2500


def rows_of(assets: int, count: int, first_us: int) -> Samples:
    """Return ``count`` samples of eight quantities, spread over ``assets``."""
    number = np.arange(count)
    return Samples(
        source=np.zeros(count, "i4"),
        asset=(number % assets).astype("i4"),
        ts_us=first_us + number // assets * 1000,
        received_us=np.full(count, first_us),
        values={
            column: np.full(count, 1.25) for column in list(QUANTITIES.values())[:QUANTITIES_SENT]
        },
    )


def copy_values_per_second(url: str, *, assets: int = 200, seconds: float = 5.0) -> float:
    """Return values a second by raw binary COPY into a table with the columns and key of telemetry.

    Encoded before, one transaction for every 20,000 values, synchronous commit, one connection.
    """
    WriterDatabase.connect(url, "limit").close()
    ids = np.arange(1, assets + 1)
    first_us = time.time_ns() // 1000 - 3_600_000_000
    buffers = [
        b"".join(encode_samples(rows_of(assets, _ROUND_ROWS, first_us + n * 10_000_000), ids))
        for n in range(400)
    ]
    columns = ", ".join(COLUMNS)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("create table raw (like telemetry including defaults)")
        connection.execute("alter table raw add primary key (asset_id, ts)")
        statement = f"copy raw ({columns}) from stdin (format binary)".encode()
        begun, written = time.perf_counter(), 0
        for buffer in buffers:
            with connection.cursor() as cursor, cursor.copy(statement) as copy:
                copy.write(buffer)
            written += _ROUND_ROWS * QUANTITIES_SENT
            if time.perf_counter() - begun > seconds:
                break
        rate = written / (time.perf_counter() - begun)
        connection.execute("drop table raw")
    return rate


def synced_writes(directory: Path, size: int, seconds: float = 3.0) -> tuple[float, float]:
    """Return writes a second of ``size`` bytes with fdatasync each, and their median in s."""
    payload, times = os.urandom(size), []
    file = os.open(directory / "limit", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    begun = time.perf_counter()
    while time.perf_counter() - begun < seconds:
        before = time.perf_counter()
        os.write(file, payload)
        os.fdatasync(file)
        times.append(time.perf_counter() - before)
    elapsed = time.perf_counter() - begun
    os.close(file)
    (directory / "limit").unlink()
    return len(times) / elapsed, sorted(times)[len(times) // 2]


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_kibibytes(pid: int) -> float:
    """Return the resident memory of a process."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024
