"""What Prometheus has to keep of a program, whatever agents, tenants and strangers do."""

import importlib
import math

import pytest
from prometheus_client import Counter, Gauge, Histogram
from tests.repository.test_docs import METRIC_MODULES

from derops.data_path import AssetFault
from derops.lifecycle import Phase, Reason
from derops.resources.derassets import AssetType
from derops.transitions import TRANSITIONS
from derops_agent.metrics import _MOST_REASONS
from derops_headend.api.problems import Slug
from derops_headend.eventlog.engines import MAX_SHARDS
from derops_operator.reconciling.census import CONDITIONS, FLOW_REASONS, IN_FLIGHT
from derops_operator.reconciling.stages import Stage
from derops_operator.resources.objects import Kind

MOST_SERIES = 2000
OF_THE_PROCESS = 40
"""What prometheus-client tells of Python and the process."""

SHARED = ("derops.metrics",)
PROGRAMS = {
    "operator": ("derops_operator.metrics",),
    "gateway": ("derops_headend.gateway.metrics", "derops_headend.eventlog.metrics"),
    "writer": ("derops_headend.storage.metrics", "derops_headend.eventlog.metrics"),
    "api": ("derops_headend.api.metrics", "derops_headend.api.audit.metrics"),
    "agent": ("derops_agent.metrics",),
}

_TYPES = len(AssetType.__args__) + 1  # type: ignore[attr-defined]  # Other: the asset is gone
_STEPS = sum(len(each.reasons) for each in TRANSITIONS) + len(Phase)
_WORDS = 80
"""More than there are reasons on the page of reasons for the end or refusal of a stream."""

MOST_CHILDREN = {
    "derops_build_info": 1,
    "derops_log_lines_left_out": 2,
    "derops_operator_reconciles": len(Kind) * 4,
    "derops_operator_reconcile_seconds": len(Kind),
    "derops_operator_status_writes": len(Kind) * 4,
    "derops_operator_dispatch_phases": _STEPS,
    "derops_operator_strange_reports": 3,
    "derops_operator_unreadable_objects": len(Kind),
    "derops_operator_authority_expiry_timestamp_seconds": 2,
    "derops_operator_dispatch_stage_seconds": len(Stage) * _TYPES,
    "derops_operator_assets": len(FLOW_REASONS),
    "derops_operator_assets_with_condition": len(CONDITIONS),
    "derops_operator_dispatches_in_flight": len(IN_FLIGHT),
    "derops_gateway_certificate_expiry_timestamp_seconds": 2,
    "derops_gateway_refused_streams": _WORDS,
    "derops_gateway_ended_streams": _WORDS,
    "derops_gateway_refused_reports": 4,
    "derops_gateway_held_bytes": 4,
    "derops_gateway_bound_reached": 4,
    "derops_writer_quarantined": 40,
    "derops_writer_committed_offset": MAX_SHARDS,
    "derops_writer_backlog_records": MAX_SHARDS,
    "derops_writer_delay_seconds": MAX_SHARDS,
    "derops_writer_behind_seconds": MAX_SHARDS,
    "derops_writer_database_failing": MAX_SHARDS,
    "derops_writer_log_damaged": MAX_SHARDS,
    "derops_api_audit_not_taken": 2,
    "derops_api_request_seconds": len({each.status for each in Slug}) + 4,
    "derops_api_refused_strangers": 4 + len(Slug),
    "derops_api_connections_closed": 6,
    "derops_agent_stream_ends": _MOST_REASONS + 1,
    "derops_agent_dispatch_transitions": _STEPS,
    "derops_agent_device_writes": 4,
    "derops_agent_modbus_connections": 5,
    "derops_agent_samples_dropped": 4,
}
"""How many values the labels of a metric have together, each from a closed set."""

Metric = Counter | Gauge | Histogram


def metrics_of(program: str) -> list[Metric]:
    return [
        metric
        for module in (*SHARED, *PROGRAMS[program])
        for metric in vars(importlib.import_module(module)).values()
        if isinstance(metric, Metric)
    ]


def most_series(metric: Metric) -> int:
    """Return how many series a metric has where all values of its labels occurred."""
    labels = metric._labelnames
    child = metric.labels(*["0"] * len(labels)) if labels else metric
    samples = list(child._child_samples())
    return len(samples) * (MOST_CHILDREN[metric._name] if labels else 1)


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_has_few_series_in_the_worst_case(program: str) -> None:
    series = sum(most_series(metric) for metric in metrics_of(program)) + OF_THE_PROCESS

    print(f"{program}: at most {series} series")
    assert series < MOST_SERIES


def test_the_sets_are_closed_and_known() -> None:
    every = {metric._name for program in PROGRAMS for metric in metrics_of(program)}
    assert set(MOST_CHILDREN) <= every
    assert {module for each in PROGRAMS.values() for module in each} | set(SHARED) == set(
        METRIC_MODULES
    )
    assert set(AssetFault) < set(FLOW_REASONS)
    assert math.prod((len(Phase), len(Reason))) > _STEPS


@pytest.mark.parametrize("word", ["namespace", "asset", "name", "uid", "peer", "tenant", "device"])
def test_no_label_is_one_that_agents_or_tenants_choose(word: str) -> None:
    labels = {
        label
        for program in PROGRAMS
        for metric in metrics_of(program)
        for label in metric._labelnames
    }
    assert word not in labels
