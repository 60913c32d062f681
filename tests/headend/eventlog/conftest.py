from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from tests.headend.eventlog.engines import Engine, JetStreamEngine, Opened, SqliteEngine
from tests.stack.nats import NatsServer


@pytest.fixture(scope="session")
def nats_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "jetstream"])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opened]:
    """Return a log that is not there yet, in turn on each of the engines."""
    engine: Engine
    if request.param == "sqlite":
        engine = SqliteEngine(tmp_path)
    else:
        engine = JetStreamEngine(request.getfixturevalue("nats_server"))
    opened = Opened(engine)
    yield opened
    await opened.close()
