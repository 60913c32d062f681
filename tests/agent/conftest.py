"""Fixtures of the agent's tests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.agent.fakes import Agent


@pytest.fixture
async def agent(tmp_path: Path) -> AsyncIterator[Agent]:
    agent = await Agent(tmp_path).start()
    yield agent
    agent.ledger.close()
