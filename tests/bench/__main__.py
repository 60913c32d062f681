"""``make bench``: what the product costs, beside what the machine can do, in the same run.

Prints one JSON object a line: name, value, unit, limit (the physical limit measured in this run, or
the figure that was promised), ratio = value / limit, and the goal of the ratio. Arguments choose:
``make bench BENCH="storage gateway"``.
"""

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

# Before gRPC is imported: its fork handlers would fail in the programs that are started.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from tests.bench import (
    audit,
    decoding,
    dispatch_latency,
    dispatching,
    fleet_memory,
    gateway,
    history,
    ingest,
    links,
    log,
    operator_scale,
    reading,
    rest,
    scraping,
    starting,
)
from tests.bench.results import Result
from tests.stack.stack import Stack

from derops.memory import keep_freed_memory


def _on_the_stack() -> Iterator[Result]:
    with Stack() as stack:
        yield from dispatch_latency.measure(stack)
        yield from fleet_memory.measure(stack)


def _log() -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as directory:
        yield from log.measure_sqlite(Path(directory))
    yield from log.measure_jetstream()


def _ingest() -> Iterator[Result]:
    yield from ingest.measure_throughput()
    yield from ingest.measure_large_batches()
    yield from ingest.measure_latency()
    yield from ingest.measure_catch_up()


def _gateway() -> Iterator[Result]:
    yield from gateway.measure_cpu()
    yield from gateway.measure_idle_agents()


def _dispatching() -> Iterator[Result]:
    yield from dispatching.measure_round_trips()
    yield from dispatching.measure_fan_out()


BENCHES: dict[str, Callable[[], Iterator[Result]]] = {
    "log": _log,
    "decoding": decoding.measure,
    "ingest": _ingest,
    "gateway": _gateway,
    "history": history.measure,
    "dispatching": _dispatching,
    "audit": audit.measure,
    "starting": starting.measure,
    "stack": _on_the_stack,
    "reading": reading.measure,
    "rest": rest.measure,
    "scraping": scraping.measure,
    "scale": operator_scale.measure,
    "links": links.measure,
}


def main() -> None:
    """Run those that are named, or all."""
    keep_freed_memory()  # as the programs do; for the limits as well
    for name in sys.argv[1:] or BENCHES:
        for result in BENCHES[name]():
            print(json.dumps(result.as_dict()), flush=True)


main()
