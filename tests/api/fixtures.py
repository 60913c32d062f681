"""The API beside a real control plane and database, and tenants: for the conftest of all tests."""

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg
import pytest
from tests.api import rig
from tests.api.rig import ApiProcess, Tenant
from tests.stack import identities
from tests.stack.controlplane import ControlPlane
from tests.stack.places import REPOSITORY
from tests.stack.postgres import API, PostgresServer

from derops_headend.storage.schema import migrate

ROLES = (REPOSITORY / "headend/derops_headend/storage/roles.sql").read_bytes()

StartApi = Callable[..., ApiProcess]

_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def api_config(kube: ControlPlane) -> str:
    """Return the path of a kubeconfig of the API's account."""
    return identities.program_kubeconfig(kube, "api")


@pytest.fixture(scope="session")
def api_database_url(postgres_server: PostgresServer) -> Iterator[str]:
    """Return the writer's URL of a migrated database that all APIs of the session share."""
    url = postgres_server.create_for_roles("api", ROLES)
    with psycopg.connect(url) as connection:
        migrate(connection)
    yield url
    postgres_server.drop_database("api")


@pytest.fixture(scope="session")
def api_role_url(postgres_server: PostgresServer, api_database_url: str) -> str:
    """Return the API's own URL of that database."""
    return postgres_server.url("api", API)


@pytest.fixture(scope="session")
def tenant_a(kube: ControlPlane) -> Tenant:
    return rig.make_tenant(kube, "tenant-a")


@pytest.fixture(scope="session")
def tenant_b(kube: ControlPlane) -> Tenant:
    return rig.make_tenant(kube, "tenant-b")


@pytest.fixture(scope="session")
def api(
    api_config: str, api_role_url: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiProcess]:
    """Return the API, running; for tests that do not disturb it."""
    with ApiProcess(tmp_path_factory.mktemp("api"), api_config, api_role_url) as running:
        yield running


@pytest.fixture
def start_api(api_config: str, api_role_url: str, tmp_path: Path) -> Iterator[StartApi]:
    """Return what starts an API of the test's own, with settings by keyword."""
    with ExitStack() as opened:

        def start(
            *, config: str = api_config, url: str = api_role_url, **settings: str
        ) -> ApiProcess:
            directory = tmp_path / f"api-{next(_numbers)}"
            given = {f"DEROPS_API_{name.upper()}": value for name, value in settings.items()}
            return opened.enter_context(ApiProcess(directory, config, url, given))

        yield start


@pytest.fixture(scope="session")
def dispatcher(api: ApiProcess, tenant_a: Tenant) -> Iterator[httpx.Client]:
    """Return a client of the dispatcher of tenant-a."""
    with api.client(tenant_a.token("dispatcher")) as client:
        yield client
