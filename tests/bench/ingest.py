"""P1, P2, P4, P5, P17: telemetry from agents into the log and the database, all on this machine.

Gateway, writer, PostgreSQL and the agents' load share its processors, as they do in the limits' run
only in part: the ratio says how much of the bare database is left for a whole product.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from tests.bench import limits
from tests.bench.echo import Echo
from tests.bench.results import Result
from tests.field.headend import FieldHeadend
from tests.field.load import Load
from tests.stack.postgres import PostgresServer

ASSETS = 100
_WARM_SECONDS, _MEASURE_SECONDS = 4.0, 15.0
_AWAY_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class _Site:
    headend: FieldHeadend
    server: PostgresServer
    url: str
    directory: Path


@contextmanager
def _site(*, data_directory: Path | None = None) -> Iterator[_Site]:
    with ExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        server = opened.enter_context(PostgresServer())
        url = server.create_database("bench")
        headend = opened.enter_context(
            FieldHeadend(directory, assets=ASSETS, database_url=url, data_directory=data_directory)
        )
        asyncio.run(headend.give_desired_state())
        headend.wait_ready("writer")
        yield _Site(headend, server, url, directory)


def _stored_rows(url: str) -> int:
    with psycopg.connect(url) as connection:
        row = connection.execute("select count(*) from telemetry").fetchone()
    return int(row[0]) if row else 0


def _rates(site: _Site, load: Load) -> tuple[float, float]:
    """Return batches acknowledged a second, and rows stored a second."""
    time.sleep(_WARM_SECONDS)
    first, rows, begun = load.count(), _stored_rows(site.url), time.perf_counter()
    time.sleep(_MEASURE_SECONDS)
    last, more, ended = load.count(), _stored_rows(site.url), time.perf_counter()
    seconds = ended - begun
    return (last.batches - first.batches) / seconds, (more - rows) / seconds


def measure_throughput() -> Iterator[Result]:
    """P1: as fast as credit allows, batches of 10 samples by 8 quantities; limit = raw COPY.

    P4 beside it: batches acknowledged a second; limit = the same with a log that needs no disk.
    """
    with _site() as site:
        copy = limits.copy_values_per_second(site.url)
        with Load(site.headend, site.headend.assets) as load:
            acknowledged, rows = _rates(site, load)
    yield Result(name="P1_ingest_10x8", value=rows * 8, unit="values/s", limit=copy, goal=">= 0.25")
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,
        _site(data_directory=Path(memory)) as site,
        Load(site.headend, site.headend.assets) as load,
    ):
        without_disk, _ = _rates(site, load)
    yield Result(
        name="P4_acknowledged_with_fsync",
        value=acknowledged,
        unit="batches/s",
        limit=without_disk,
        goal=">= 0.9",
    )


def measure_large_batches() -> Iterator[Result]:
    """P2: batches of 100 samples by 8 quantities, offered at 0.6 of raw COPY."""
    with _site() as site:
        copy = limits.copy_values_per_second(site.url)
        rate = 0.6 * copy / 800 / ASSETS
        with Load(site.headend, site.headend.assets, samples=100, batches_per_second=rate) as load:
            acknowledged, rows = _rates(site, load)
    yield Result(
        name="P2_ingest_100x8", value=rows * 8, unit="values/s", limit=copy, goal=">= 0.55"
    )
    yield Result(
        name="P2_stored_of_acknowledged",
        value=rows * 8,
        unit="values/s",
        limit=acknowledged * 800,
        goal=">= 0.95",
    )


def measure_latency() -> Iterator[Result]:
    """P5: from writing a batch to its acknowledgement at a quarter of saturation.

    Limit: an echo of the bare transport at the same rate, plus one write with fdatasync.
    """
    with _site() as site:
        with Load(site.headend, site.headend.assets) as load:
            saturated, _ = _rates(site, load)
        rate = saturated / 4 / ASSETS
        with Load(site.headend, site.headend.assets, batches_per_second=rate) as load:
            time.sleep(_WARM_SECONDS)
            load.count(clear=True)
            time.sleep(_MEASURE_SECONDS)
            measured = load.count()
        with (
            Echo(site.headend) as echo,
            Load(echo, site.headend.assets, batches_per_second=rate) as load,
        ):
            time.sleep(_WARM_SECONDS)
            load.count(clear=True)
            time.sleep(_WARM_SECONDS)
            bare = load.count()
        _, sync_seconds = limits.synced_writes(site.directory, 4096)
    limit = (bare.p50_seconds + sync_seconds) * 1e3
    for name, value, goal in (
        ("P5_acknowledged_p50", measured.p50_seconds, "<= 4"),
        ("P5_acknowledged_p99", measured.p99_seconds, "<= 15"),
    ):
        yield Result(name=name, value=value * 1e3, unit="ms", limit=limit, goal=goal)


def measure_catch_up() -> Iterator[Result]:
    """P17: the database is away for 20 s under a steady load; limit = the rate of that load."""
    with _site() as site, Load(site.headend, site.headend.assets, batches_per_second=2) as load:
        time.sleep(_WARM_SECONDS)
        first, begun = load.count(), time.perf_counter()
        site.server.process.terminate()
        time.sleep(_AWAY_SECONDS)
        steady = (load.count().batches - first.batches) * 10 / (time.perf_counter() - begun)
        site.server.start_again()
        rows = _stored_rows(site.url)
        while _stored_rows(site.url) == rows:
            time.sleep(0.05)
        begun = time.perf_counter()
        while _stored_rows(site.url) < load.count().batches * 10 - steady:
            time.sleep(0.05)
        drained = (_stored_rows(site.url) - rows) / (time.perf_counter() - begun)
    yield Result(
        name="P17_catch_up_after_20_s",
        value=drained,
        unit="rows/s",
        limit=steady,
        goal=">= 4",
    )
