"""P15: from messages as they arrive to rows for COPY."""

import time
from collections.abc import Callable, Iterator

import numpy as np
from tests.bench.results import Result

from derops.wire.v1 import agent_pb2, dispatch_pb2, log_pb2
from derops_headend.writing.binary_copy import encode_samples
from derops_headend.writing.conversion import convert
from derops_headend.writing.rows import LogSource

_SAMPLES, _COLUMNS, _BATCHES = 100, 8, 200
_BLOCK = 2000
"""Rows filled at once: what numpy does most quickly here, as they stay in the processor's cache."""

_SECONDS = 3.0


def measure() -> Iterator[Result]:
    """Batches of 100 samples by 8 quantities; limit = as many numbers from one buffer by numpy."""
    values = _SAMPLES * _COLUMNS * _BATCHES
    sources = [LogSource(1, number, _entry(number)) for number in range(_BATCHES)]
    ids = np.array([1])

    def product() -> None:
        for _ in encode_samples(convert(sources).samples, ids):
            pass

    buffer = np.random.default_rng(1).random(values).tobytes()
    row = np.dtype([("fields", ">i2")] + [(f"l{n}", ">i4") for n in range(_COLUMNS + 3)]
                   + [(f"v{n}", ">f8") for n in range(_COLUMNS + 3)])  # fmt: skip

    def bare() -> None:
        numbers = np.frombuffer(buffer).reshape(_COLUMNS, -1)
        for first in range(0, numbers.shape[1], _BLOCK):
            rows = np.empty(_BLOCK, row)
            for n in range(_COLUMNS + 3):
                rows[f"l{n}"] = 8
                rows[f"v{n}"] = numbers[n % _COLUMNS, first : first + _BLOCK]
            rows.tobytes()

    yield Result(
        name="P15_decode_to_copy",
        value=_rate(product) * values,
        unit="values/s",
        limit=_rate(bare) * values,
        goal=">= 0.5",
    )


def _rate(work: Callable[[], None]) -> float:
    """Return how often a second of the processor does it, whoever else is on the machine."""
    work()
    begun, count = time.process_time(), 0
    while time.process_time() - begun < _SECONDS:
        work()
        count += 1
    return count / (time.process_time() - begun)


def _entry(number: int) -> log_pb2.LogEntry:
    now_us = time.time_ns() // 1000
    batch = agent_pb2.TelemetryBatch(
        sequence=number + 1,
        outbox_id="o",
        t0_us=now_us + number * 1000,
        dt_us=list(range(_SAMPLES)),
        columns=[
            agent_pb2.Column(quantity=name, values=[n + 0.5 for n in range(_SAMPLES)])
            for name in agent_pb2.Quantity.keys()[1 : _COLUMNS + 1]
        ],
    )
    return log_pb2.LogEntry(
        kind=log_pb2.TELEMETRY,
        asset=dispatch_pb2.AssetId(uid="u", namespace="n", name="a"),
        received_us=now_us,
        body=batch.SerializeToString(),
    )
