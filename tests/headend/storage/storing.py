"""Samples on their way into a database, and the roll-ups that they should have."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import psycopg
from tests.headend.writing.making import batch, entry, sources

from derops.wire.v1 import log_pb2
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.roll_ups import roll_up

NOW = datetime.now(UTC).replace(microsecond=0)
MINUTE_US = 60_000_000


class Sample(NamedTuple):
    ts_us: int
    watts: float = math.nan
    volts: float = math.nan


class Store:
    """Stores batches one by one, as a writer does."""

    def __init__(self, database: WriterDatabase, offset: int = 0) -> None:
        self.database, self.offset = database, offset

    def __call__(self, samples: Sequence[Sample], received: datetime = NOW) -> None:
        self.offset += 1
        self.database.store(
            sources(entry_of(samples, us(received)), offset=self.offset),
            after=self.offset - 1,
            through=self.offset,
        )


def us(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)


def minute_of(moment: datetime) -> int:
    """Return the beginning of the minute, in microseconds."""
    return us(moment) // MINUTE_US * MINUTE_US


def entry_of(samples: Sequence[Sample], received_us: int) -> log_pb2.LogEntry:
    message = batch(
        {
            "active_power_watts": [sample.watts for sample in samples],
            "voltage_volts": [sample.volts for sample in samples],
        },
        t0_us=samples[0].ts_us,
    )
    message.dt_us[:] = [sample.ts_us - samples[0].ts_us for sample in samples]
    made = entry(log_pb2.TELEMETRY, message.SerializeToString())
    made.received_us = received_us
    return made


def roll_up_all(database_url: str, now: datetime = NOW + timedelta(days=1)) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        while roll_up(connection, now, 7):
            pass
