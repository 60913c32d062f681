"""P3, P9, P10, P14: what the gateway costs, beside a bare grpc.aio server over mTLS."""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.bench import limits
from tests.bench.echo import Echo
from tests.bench.results import Result
from tests.field.headend import FieldHeadend
from tests.field.load import Load
from tests.stack.postgres import PostgresServer

_SECONDS = 10.0
_IDLE_AGENTS = 1000
_LARGEST_SAMPLES = 880
"""With eight quantities: 64,000 bytes, just below the cap of a batch."""


@contextmanager
def bench_headend(assets: int) -> Iterator[FieldHeadend]:
    """Yield a headend that knows its assets, with a database."""
    with ExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        server = opened.enter_context(PostgresServer())
        url = server.create_database("bench")
        headend = opened.enter_context(FieldHeadend(directory, assets=assets, database_url=url))
        asyncio.run(headend.give_desired_state())
        yield headend


def _cpu_per_message(pid: int, load: Load) -> float:
    time.sleep(3)
    first, used = load.count(), limits.cpu_seconds(pid)
    time.sleep(_SECONDS)
    last, after = load.count(), limits.cpu_seconds(pid)
    return (after - used) / (last.batches - first.batches)


def measure_cpu() -> Iterator[Result]:
    """P3: processor time of a telemetry message, 100 agents with 5 batches a second each.

    Limit: that of an echo of the same bytes at the same rate. Beside it the same where the agents
    send as fast as credit allows, and the echo as fast as it answers: each message of the one at
    the lower rate is a wake-up and nearly a commit by itself.
    """
    for name, rate in (("P3_cpu_per_message", 5.0), ("P3_cpu_per_message_saturated", 0.0)):
        with bench_headend(100) as headend:
            headend.parts["writer"].terminate()
            with Load(headend, headend.assets, batches_per_second=rate) as load:
                value = _cpu_per_message(headend.parts["gateway"].pid, load)
            with Echo(headend) as echo, Load(echo, headend.assets, batches_per_second=rate) as load:
                limit = _cpu_per_message(echo.pid, load)
        yield Result(name=name, value=value * 1e6, unit="us", limit=limit * 1e6, goal="<= 1.3")


def measure_idle_agents() -> Iterator[Result]:
    """P9: memory of the gateway for each of 1,000 idle agents; limit = that of the bare server.

    P14 beside it: agents connected for each second of the server's processor; P10: memory for each
    after one message of the largest size.
    """
    with bench_headend(_IDLE_AGENTS) as headend:
        headend.parts["writer"].terminate()
        pid = headend.parts["gateway"].pid
        memory, cpu = limits.resident_kibibytes(pid), limits.cpu_seconds(pid)
        with Load(headend, headend.assets, batches_per_second=-1.0):
            idle = (limits.resident_kibibytes(pid) - memory) / _IDLE_AGENTS
            connected = _IDLE_AGENTS / (limits.cpu_seconds(pid) - cpu)
        with Echo(headend) as echo:
            memory, cpu = limits.resident_kibibytes(echo.pid), limits.cpu_seconds(echo.pid)
            with Load(echo, headend.assets, batches_per_second=-1.0):
                bare = (limits.resident_kibibytes(echo.pid) - memory) / _IDLE_AGENTS
                bare_connected = _IDLE_AGENTS / (limits.cpu_seconds(echo.pid) - cpu)
    yield Result(name="P9_memory_per_agent", value=idle, unit="KiB", limit=bare, goal="<= 1.1")
    yield Result(name="P9_memory_per_agent_at_most", value=idle, unit="KiB", limit=100.0)
    yield Result(
        name="P14_agents_connected_per_cpu_second",
        value=connected,
        unit="agents/s",
        limit=bare_connected,
        goal=">= 0.8",
    )
    with bench_headend(_IDLE_AGENTS) as headend:
        headend.parts["writer"].terminate()
        pid = headend.parts["gateway"].pid
        memory = limits.resident_kibibytes(pid)
        with Load(
            headend,
            headend.assets,
            samples=1,
            batches_per_second=0.5,
            first_message_samples=_LARGEST_SAMPLES,
        ) as load:
            while load.count().batches < _IDLE_AGENTS:
                time.sleep(0.2)
            large = (limits.resident_kibibytes(pid) - memory) / _IDLE_AGENTS
    yield Result(
        name="P10_memory_per_agent_after_64_KB", value=large, unit="KiB", limit=idle, goal="<= 1.2"
    )
