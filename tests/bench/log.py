"""P12, P16: appending to the event log, beside bare writes of the same bytes."""

import asyncio
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import nats
from nats.js import JetStreamContext
from tests.bench import limits
from tests.bench.results import Result
from tests.stack.nats import NatsServer

from derops.wire.v1 import dispatch_pb2, log_pb2
from derops_headend.eventlog.jetstream import JetStreamEventLog, JetStreamSettings
from derops_headend.eventlog.ports import EventLog
from derops_headend.eventlog.records import MAX_RECORD_BYTES
from derops_headend.eventlog.sqlite import SqliteEventLog

_TURNS, _TURN_SECONDS = 8, 0.5
"""Product and limit take turns, as a shared disk is another one a few seconds later."""

_ENTRY_BYTES = 700
"""A batch of ten samples with eight quantities."""


def _group(size: int) -> list[log_pb2.LogEntry]:
    asset = dispatch_pb2.AssetId(uid="uid-1", namespace="ns", name="battery")
    body = os.urandom(_ENTRY_BYTES)
    entry = log_pb2.LogEntry(kind=log_pb2.TELEMETRY, asset=asset, received_us=1, body=body)
    return [entry] * (size // (entry.ByteSize() + 3))


async def _appends_per_second(log: EventLog, size: int) -> float:
    """Append groups one after the other; each differs, as the log may know what it has seen."""
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < _TURN_SECONDS:
        group = _group(size)
        await log.append(group)
        count += 1
    return count / (time.perf_counter() - begun)


def measure_sqlite(directory: Path) -> Iterator[Result]:
    """P12: groups of 64 and 256 KiB; limit = write and fdatasync of as many bytes."""
    for size in (65536, MAX_RECORD_BYTES):
        log = SqliteEventLog(directory / f"log-{size}.db")
        values, bare = [], []
        for _ in range(_TURNS):
            values.append(asyncio.run(_appends_per_second(log, size)))
            bare.append(limits.synced_writes(directory, size, _TURN_SECONDS)[0])
        log.close()
        yield Result(
            name=f"P12_log_append_{size // 1024}_KiB",
            value=median(values),
            unit="appends/s",
            limit=median(bare),
            goal=">= 0.85",
        )


def measure_jetstream() -> Iterator[Result]:
    """P16: groups of 256 KiB into JetStream; limit = nats-py publishing as many bytes, as often."""
    with NatsServer() as server:
        value, limit = asyncio.run(_jetstream(server.url))
    yield Result(
        name="P16_jetstream_append_256_KiB",
        value=value,
        unit="appends/s",
        limit=limit,
        goal=">= 0.8",
    )


async def _jetstream(url: str) -> tuple[float, float]:
    """Return appends a second, and publishes a second by nats-py."""
    log = await JetStreamEventLog.open(JetStreamSettings(url=url), shards=1, max_bytes=8 * 1024**3)
    connection = await nats.connect(url)
    stream = connection.jetstream()
    await stream.add_stream(name="LIMIT", subjects=["LIMIT"])
    values, bare = [], []
    for _ in range(_TURNS):
        values.append(await _appends_per_second(log, MAX_RECORD_BYTES))
        bare.append(await _publishes_per_second(stream))
    await connection.close()
    await log.close()
    return median(values), median(bare)


async def _publishes_per_second(stream: JetStreamContext) -> float:
    payload = os.urandom(MAX_RECORD_BYTES)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() - begun < _TURN_SECONDS:
        await stream.publish("LIMIT", payload, headers={"Nats-Msg-Id": secrets.token_hex(8)})
        count += 1
    return count / (time.perf_counter() - begun)
