"""What all assets and dispatches come to."""

import asyncio
import math
from typing import Any

import pytest
from tests.counters import value_of
from tests.operator.making import asset, at, dispatch

from derops.data_path import AssetFault
from derops.lifecycle import Phase
from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.cluster.counting import count, pause_seconds, show
from derops_operator.reconciling.census import FLOW_REASONS, IN_FLIGHT, Census
from derops_operator.resources.assets import Asset
from derops_operator.resources.instants import format_second
from derops_operator.resources.objects import Kind

MONTH = 2_592_000


def with_condition(name: str, kind: str, value: str, reason: str) -> Asset:
    condition = {"type": kind, "status": value, "reason": reason}
    return asset(name, status={"conditions": [condition]})


def certified(name: str, left_seconds: float, **others: Any) -> Asset:
    current = {"serialNumber": "1", "notAfter": format_second(at(left_seconds))}
    return asset(name, status={"identity": {"current": current}}, **others)


def test_assets_are_counted_by_why_their_data_do_not_flow() -> None:
    census = Census(at(0))
    for number, fault in enumerate([AssetFault.DEVICE_SILENT, AssetFault.DEVICE_SILENT, "Newer"]):
        census.add_asset(with_condition(f"a{number}", "DataFlowing", "False", str(fault)))
    census.add_asset(with_condition("good", "DataFlowing", "True", "Flowing"))
    census.add_asset(asset("new"))

    assert census.assets == {"DeviceSilent": 2, "Other": 1, "Flowing": 1, "Unjudged": 1}


def test_a_condition_counts_where_it_is_true() -> None:
    census = Census(at(0))
    for number, value in enumerate(["True", "False", "Unknown"]):
        census.add_asset(with_condition(f"a{number}", "FallbackNotHeld", value, "NotTaken"))
    census.add_asset(with_condition("good", "Ready", "True", "Stored"))

    assert census.conditions == {"FallbackNotHeld": 1}


def test_the_first_certificate_and_those_that_should_have_been_renewed() -> None:
    census = Census(at(0))
    assert math.isnan(census.first_expiry_seconds)

    census.add_asset(certified("good", MONTH / 3))
    census.add_asset(certified("overdue", MONTH / 6 - 1))
    census.add_asset(certified("short", 700, identity={"certificateDurationSeconds": 3600}))
    census.add_asset(certified("gone", 100, operatingState="OutOfService"))

    assert census.first_expiry_us == at(700)
    assert census.overdue == 1


def test_dispatches_count_in_flight_and_while_nobody_knows_that_the_device_let_go() -> None:
    unreverted = {"type": "Reverted", "status": "False", "reason": "DeviceOffline"}
    census = Census(at(0))
    census.add_dispatch(dispatch("flying", submitted=True, status={"phase": "Active"}))
    census.add_dispatch(dispatch("new"))
    census.add_dispatch(dispatch("done", status={"phase": "Complete"}))
    census.add_dispatch(dispatch("holds", status={"phase": "Failed", "conditions": [unreverted]}))

    assert (census.in_flight, census.unreverted) == ({Phase.ACTIVE: 1}, 1)


async def test_others_have_their_turn_while_many_are_counted() -> None:
    cache = Cache()
    for number in range(1000):
        cache.put(Kind.ASSET, asset(f"battery-{number}"))
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    census = await count(cache, at(0))
    task.cancel()

    assert census.assets == {"Unjudged": 1000}
    assert turns >= 5


@pytest.mark.parametrize(("many", "seconds"), [(0, 15), (20_000, 15), (200_000, 100)])
def test_many_dispatches_are_counted_less_often(many: int, seconds: float) -> None:
    census, ended = Census(at(0)), dispatch("done", status={"phase": "Complete"})
    for _ in range(many):
        census.add_dispatch(ended)

    assert pause_seconds(census) == seconds


@pytest.mark.parametrize("reason", FLOW_REASONS)
def test_what_is_no_more_is_shown_as_nothing(reason: str) -> None:
    full = Census(at(0))
    full.add_asset(with_condition("a", "DataFlowing", "False", reason))

    show(full)
    seen = value_of(metrics.ASSETS.labels(reason)), value_of(metrics.ASSETS.labels("Unjudged"))
    show(Census(at(0)))

    assert seen == (1, float(reason == "Unjudged"))
    assert value_of(metrics.ASSETS.labels(reason)) == 0
    assert all(value_of(metrics.DISPATCHES_IN_FLIGHT.labels(phase)) == 0 for phase in IN_FLIGHT)
