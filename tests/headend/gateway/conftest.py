from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.headend.gateway.rig import Operator, Rig
from tests.pki import Leaf


@pytest.fixture(autouse=True)
def _no_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give credit at once, however busy the machine: the pace has tests of its own."""
    monkeypatch.setattr("derops_headend.fleet.pace.LATE_SECONDS", 60.0)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    await rig.start()
    yield rig
    rig.log.open.set()
    await rig.stop()


@pytest.fixture
def leaf(rig: Rig) -> Leaf:
    """The good certificate of the asset ``battery``."""
    return rig.agent_ca.agent("battery")


@pytest.fixture
async def operator(rig: Rig, leaf: Leaf) -> Operator:
    """An operator that has sent a snapshot with ``battery`` and no dispatch."""
    operator = rig.operator()
    await operator.snapshot([rig.asset("battery", leaf)])
    return operator
