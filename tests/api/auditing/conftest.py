"""An audit of the test's own: a file, and a database with our roles on each of the engines."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.rows import dict_row
from tests.api.auditing.making import NOW
from tests.stack.postgres import API, PostgresServer

from derops_headend.api.audit.trail import AuditTrail
from derops_headend.storage.roles import roles_sql
from derops_headend.storage.schema import migrate

_databases = itertools.count(1)
Rows = list[dict[str, Any]]


class AuditDatabase(NamedTuple):
    """URLs of one migrated database, by role."""

    name: str
    server: PostgresServer
    writer: str
    api: str

    def connect(self) -> psycopg.Connection:
        """Return a connection as the API makes it."""
        return psycopg.connect(self.api, autocommit=True, connect_timeout=2)

    def rows(self, text: str = "select * from audit_event order by chain, seq") -> Rows:
        with psycopg.connect(self.writer, autocommit=True, row_factory=dict_row) as connection:
            return connection.execute(text.encode()).fetchall()


@pytest.fixture(params=["postgres_server", "timescale_server"])
def audit_database(request: pytest.FixtureRequest) -> Iterator[AuditDatabase]:
    server: PostgresServer = request.getfixturevalue(request.param)
    yield from make_database(server)


@pytest.fixture
def postgres_database(postgres_server: PostgresServer) -> Iterator[AuditDatabase]:
    yield from make_database(postgres_server)


def make_database(server: PostgresServer) -> Iterator[AuditDatabase]:
    name = f"audit_{next(_databases)}"
    writer = server.create_for_roles(name, roles_sql())
    with psycopg.connect(writer, autocommit=True) as connection:
        migrate(connection)
    yield AuditDatabase(name, server, writer, server.url(name, API))
    server.drop_database(name)


OpenTrail = Callable[..., AuditTrail]


@pytest.fixture
def open_trail(tmp_path: Path) -> OpenTrail:
    """Return what opens a trail that the test starts and closes."""

    def open_trail(
        connect: Callable[[], psycopg.Connection], replica: str = "api-0", **options: Any
    ) -> AuditTrail:
        given: dict[str, Any] = {"now": lambda: NOW, "max_bytes": 4 * 1024**2} | options
        return AuditTrail.open(tmp_path / replica, replica=replica, connect=connect, **given)

    return open_trail
