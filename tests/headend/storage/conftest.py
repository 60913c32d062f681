"""A migrated database of the test's own, and a look into it."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
from tests.headend.storage.storing import Store
from tests.stack.postgres import PostgresServer

from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.roles import roles_sql
from derops_headend.storage.schema import migrate

_databases = itertools.count(1)
Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture(params=["postgres_server", "timescale_server"])
def database_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Return the writer's URL of an empty database, in turn on each of the engines.

    It has just the rights that we tell people to give it.
    """
    server: PostgresServer = request.getfixturevalue(request.param)
    name = f"storage_{next(_databases)}"
    yield server.create_for_roles(name, roles_sql())
    server.drop_database(name)


@pytest.fixture
def database(database_url: str) -> Iterator[WriterDatabase]:
    database = WriterDatabase.connect(database_url, "log")
    yield database
    database.close()


@pytest.fixture
def query(database_url: str) -> Iterator[Query]:
    """Return a function that runs SQL on the migrated database, on a connection of its own."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        migrate(connection)

        def run(text: str, *arguments: object) -> list[tuple[Any, ...]]:
            cursor = connection.execute(text.encode(), arguments or None)
            return cursor.fetchall() if cursor.description is not None else []

        yield run


@pytest.fixture
def store(database: WriterDatabase) -> Store:
    return Store(database)
