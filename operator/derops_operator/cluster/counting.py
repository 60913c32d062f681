"""Counts all resources for the metrics, a few at a time, so that nothing waits for it."""

import asyncio
from collections.abc import Callable
from functools import partial

from derops_operator import metrics
from derops_operator.cluster.cache import Cache
from derops_operator.reconciling.census import CONDITIONS, FLOW_REASONS, IN_FLIGHT, Census
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.facts import Fact
from derops_operator.resources.manifests import attempt
from derops_operator.resources.objects import Kind

LEAST_PAUSE_SECONDS = 15.0
PAUSE_OF_ONE_SECONDS = 0.0005
"""To count an object takes 4 us: however many there are, all counting takes 1 % of a core."""

_AT_ONCE = 200
"""How many are counted before others have their turn: about a millisecond."""


async def keep_counting(cache: Cache, now_us: Callable[[], int]) -> None:
    """Count again and again, until cancelled."""
    while True:
        census = await count(cache, now_us())
        show(census)
        await asyncio.sleep(pause_seconds(census))


def pause_seconds(census: Census) -> float:
    """Return how long to wait for the next count."""
    return max(LEAST_PAUSE_SECONDS, census.counted * PAUSE_OF_ONE_SECONDS)


async def count(cache: Cache, now_us: int) -> Census:
    """Return a count of what is in the cache; what comes or goes meanwhile may be in it or not."""
    census = Census(now_us)
    for kind in (Kind.ASSET, Kind.DISPATCH):
        keys = cache.keys(kind)
        for first in range(0, len(keys), _AT_ONCE):
            for key in keys[first : first + _AT_ONCE]:
                _add(census, cache.fact(key))
            await asyncio.sleep(0)
    return census


def _add(census: Census, fact: Fact | None) -> None:
    """Count one object; one that cannot be worked on is told of elsewhere, and ends no count."""
    if isinstance(fact, Asset):
        attempt(partial(census.add_asset, fact))
    elif isinstance(fact, Dispatch):
        attempt(partial(census.add_dispatch, fact))


def show(census: Census) -> None:
    """Show a count as metrics: each label value, also where it is 0."""
    for reason in FLOW_REASONS:
        metrics.ASSETS.labels(reason).set(census.assets[reason])
    for condition in CONDITIONS:
        metrics.ASSETS_WITH_CONDITION.labels(condition).set(census.conditions[condition])
    for phase in IN_FLIGHT:
        metrics.DISPATCHES_IN_FLIGHT.labels(phase).set(census.in_flight[phase])
    metrics.AGENT_CERTIFICATE_EXPIRY.set(census.first_expiry_seconds)
    metrics.AGENT_CERTIFICATES_OVERDUE.set(census.overdue)
    metrics.DISPATCHES_UNREVERTED.set(census.unreverted)
