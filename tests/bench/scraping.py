"""What it costs a program to be scraped each 15 s, with every series that it can ever have."""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from tests.bench.results import Result
from tests.programs.test_series import MOST_CHILDREN, PROGRAMS, metrics_of

from derops_operator.cluster.cache import Cache
from derops_operator.reconciling.census import Census
from derops_operator.resources.assets import Asset, read_asset
from derops_operator.resources.dispatches import Dispatch, read_dispatch
from derops_operator.resources.objects import Kind

_EVERY_SECONDS = 15.0
_MOST_SHARE_OF_A_CORE = 0.01
_SCRAPES = 50
_ASSETS = 10_000


def measure() -> Iterator[Result]:
    """Processor time of a scrape by program, in the worst case, and of the operator's count."""
    for program in PROGRAMS:
        registry = _full(program)
        begun = time.process_time()
        for _ in range(_SCRAPES):
            generate_latest(registry)
        yield _result(f"scrape_{program}", (time.process_time() - begun) / _SCRAPES)
    yield _result("count_10000_assets", _count_seconds())


def _result(name: str, seconds: float) -> Result:
    return Result(
        name=name,
        value=seconds / _EVERY_SECONDS * 100,
        unit="% of a core",
        limit=_MOST_SHARE_OF_A_CORE * 100,
    )


def _full(program: str) -> CollectorRegistry:
    """Return a registry in which all labels of a program have all their values."""
    registry = CollectorRegistry()
    for metric in metrics_of(program):
        registry.register(metric)
        if labels := metric._labelnames:
            for number in range(MOST_CHILDREN[metric._name]):
                metric.labels(*[str(number)] * len(labels))
    return registry


def _count_seconds() -> float:
    """Return the processor time to count 10,000 assets with one dispatch each."""
    cache = Cache()
    for number in range(_ASSETS):
        cache.put(Kind.ASSET, _asset(number))
        cache.put(Kind.DISPATCH, _dispatch(number))
    begun = time.process_time()
    census = Census(1_800_000_000_000_000)
    for kind in (Kind.ASSET, Kind.DISPATCH):
        for key in cache.keys(kind):
            fact = cache.fact(key)
            if isinstance(fact, Asset):
                census.add_asset(fact)
            elif isinstance(fact, Dispatch):
                census.add_dispatch(fact)
    return time.process_time() - begun


def _metadata(name: str) -> dict[str, object]:
    return {
        "namespace": "bench",
        "name": name,
        "uid": f"uid-{name}",
        "generation": 1,
        "resourceVersion": "10",
        "creationTimestamp": "2026-12-01T00:00:00Z",
    }


def _asset(number: int) -> Asset:
    kinds = ("Ready", "Reconciling", "Stalled", "Enrolled", "Connected", "Released", "DataFlowing")
    return read_asset(
        {
            "metadata": _metadata(f"battery-{number}"),
            "spec": {
                "type": "Battery",
                "ratings": {
                    "maxInjectionWatts": 10_000,
                    "maxAbsorptionWatts": 10_000,
                    "energyCapacityWattHours": 20_000,
                },
            },
            "status": {
                "identity": {"current": {"notAfter": "2027-12-01T00:00:00Z"}},
                "conditions": [
                    {"type": kind, "status": "True", "reason": "Flowing"} for kind in kinds
                ],
            },
        }
    )


def _dispatch(number: int) -> Dispatch:
    kinds = ("Delivered", "Accepted", "Applied", "Verified", "Reverted", "Succeeded")
    return read_dispatch(
        {
            "metadata": _metadata(f"peak-{number}"),
            "spec": {
                "assetRef": {"name": f"battery-{number}"},
                "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
                "durationSeconds": 60,
            },
            "status": {
                "phase": "Complete",
                "conditions": [{"type": kind, "status": "True"} for kind in kinds],
            },
        }
    )
