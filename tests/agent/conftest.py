"""Fixtures of the agent's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.agent.fakes import Agent

from derops.lifecycle import Phase
from derops.transitions import Actor, may_say


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    agent = await Agent(tmp_path).start()
    yield agent
    agent.ledger.close()
    for report in agent.reports:
        for step in report.transitions:
            assert may_say(Actor.AGENT, Phase(step.phase), step.reason), step
