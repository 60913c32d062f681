"""Attacks of whoever has a gateway: what an agent does not let even a gateway have it do.

It can withhold, withdraw, and order within the limits; docs/concepts/threats.md says so.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.agent.fakes import Agent, asset, order

from derops_agent.execution.site import LocalLimits


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    """Return an agent whose site lets it inject 3,000 W and absorb 2,000 W, whoever asks."""
    agent = Agent(tmp_path, local=LocalLimits(max_injection_watts=3000, max_absorption_watts=2000))
    yield await agent.start()
    agent.ledger.close()


async def test_what_the_site_allows_is_done(agent: Agent) -> None:
    """The undisturbed case: without it the refusals below would prove nothing."""
    await agent.give(order(watts=3000))
    await agent.wait(61)

    assert agent.powers[-1] == 3000


@pytest.mark.parametrize("watts", [3001, -2001])
async def test_an_order_beyond_the_sites_limits_is_refused(agent: Agent, watts: int) -> None:
    """G1: a gateway raises the asset's limits, and orders more than the site allows."""
    ratings = {"limit_max_injection_watts": 10**12, "limit_max_absorption_watts": 10**12}
    await agent.give(asset(generation=2, **ratings), order(watts=watts))
    await agent.wait(61)

    assert agent.outcome() == ("Rejected", "LocalLimitExceeded")
    assert watts not in agent.powers


async def test_an_order_of_another_asset_is_refused(agent: Agent) -> None:
    """G2: a gateway gives an agent what was ordered of another asset."""
    await agent.give(order(asset_uid="asset-2", watts=1000))
    await agent.wait(61)

    assert agent.outcome() == ("Rejected", "AssetNotFound")
    assert 1000 not in agent.powers


async def test_an_order_that_has_run_does_not_run_again(agent: Agent) -> None:
    """G3: a gateway gives an order once more, also after a restart of the agent."""
    await agent.give(order(watts=1000))
    await agent.wait(200, step=5)
    assert agent.outcome() == ("Complete", "WindowEnded")
    writes = len(agent.device.writes)

    await agent.give(order(watts=1000))
    await agent.wait(200, step=5)
    await agent.restart(down_seconds=5)
    await agent.snapshot(order(watts=1000))
    await agent.wait(200, step=5)

    assert 1000 not in {each.active_power_watts for each in agent.device.writes[writes:]}


async def test_no_order_outlasts_its_end(agent: Agent) -> None:
    """G4: a gateway gives an order and is gone: the agent ends it alone."""
    await agent.give(order(watts=1000))
    await agent.wait(61)
    assert agent.powers[-1] == 1000

    await agent.wait(200, step=5)

    assert agent.powers[-1] == 0
    assert agent.outcome() == ("Complete", "WindowEnded")
