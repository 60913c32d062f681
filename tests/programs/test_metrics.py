"""Prometheus has nothing to say against our metrics: names, units, help."""

import importlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from tests.programs import pods
from tests.programs.pods import PROGRAMS, Program, started
from tests.repository.test_docs import METRIC_MODULES
from tests.stack import ops
from tests.stack.prometheus import find_promtool


def complaints(exposition: bytes) -> str:
    """Return what promtool has against an answer of /metrics."""
    result = subprocess.run(
        [find_promtool(), "check", "metrics"], input=exposition, capture_output=True, check=False
    )
    return (result.stdout + result.stderr).decode()


def known_metrics() -> Iterator[MetricWrapperBase]:
    for module in METRIC_MODULES:
        for metric in vars(importlib.import_module(module)).values():
            if isinstance(metric, Counter | Gauge | Histogram):
                yield metric


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: str(make.__name__))
async def test_what_a_program_answers_is_taken(
    make: Callable[[Path], Program], directory: Path
) -> None:
    program = make(directory)

    with started(program, directory) as running:
        await pods.until(
            lambda: running.process.poll() is not None or program.says in running.said()
        )
        ready, _ = ops.ask(program.ops_port)
        status, text = ops.ask(program.ops_port, "metrics")

    assert status == 200
    assert f"derops_{make.__name__}_" in text
    assert f'derops_build_info{{program="{make.__name__}",version="' in text
    assert f"derops_ready {float(ready == 200)}" in text
    assert complaints(text.encode()) == ""


def test_no_metric_that_has_values_only_later_is_complained_of() -> None:
    """A metric with labels is not in an answer before it counts."""
    registry = CollectorRegistry()
    for metric in known_metrics():
        registry.register(metric)
        if metric._labelnames:
            metric.labels(*["0"] * len(metric._labelnames))

    assert complaints(generate_latest(registry)) == ""


def test_a_bad_name_is_complained_of() -> None:
    text = b"# HELP derops_writer_days_dropped_total Days.\n"
    text += b"# TYPE derops_writer_days_dropped_total counter\nderops_writer_days_dropped_total 1\n"

    assert "use base unit" in complaints(text)
