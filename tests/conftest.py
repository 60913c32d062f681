"""Real parts as fixtures. Each starts when the first test asks for it, and once in a session."""

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings
from tests.api.fixtures import (  # noqa: F401  # also for attacks on the API
    api,
    api_config,
    api_database_url,
    api_role_url,
    dispatcher,
    start_api,
    tenant_a,
    tenant_b,
)
from tests.stack.controlplane import ControlPlane
from tests.stack.postgres import PostgresServer
from tests.stack.timescale import find_timescale
from tests.waiting import PatientLoop

if TYPE_CHECKING:
    from tests.stack.stack import Stack

TESTS = Path(__file__).parent
LONGEST = {
    "alerts",
    "chart",
    "dashboards",
    "drill",
    "e2e",
    "faults",
    "kills",
    "stack_tests",
    "upgrade",
}
"""Folders with the files that take longest: they run whole programs."""

_databases = itertools.count(1)

# How long an example takes is a question of what else the machine does. A change is judged by the
# same examples each time; whoever looks for others, as "make histories" does, says how many.
settings.register_profile("derops", deadline=None, derandomize="DEROPS_EXAMPLES" not in os.environ)
settings.load_profile("derops")


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Let no test fail for what else the machine does."""
    return {"patient": PatientLoop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what takes longest, so that no worker is left with it at the end."""
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] not in LONGEST)


@pytest.fixture(scope="session")
def kube() -> Iterator[ControlPlane]:
    """Return a control plane with cert-manager and our CRDs, and nothing of the product running."""
    with ControlPlane() as control_plane:
        yield control_plane


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="session")
def timescale_server() -> Iterator[PostgresServer]:
    with PostgresServer(installation=find_timescale()) as server:
        yield server


@pytest.fixture
def database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Return the URL of an empty database that lives as long as the test."""
    name = f"test_{next(_databases)}"
    yield postgres_server.create_database(name)
    postgres_server.drop_database(name)


@pytest.fixture(scope="session")
def stack() -> "Iterator[Stack]":
    """Return the whole product, running."""
    from tests.stack.stack import Stack

    with Stack() as running:
        yield running
