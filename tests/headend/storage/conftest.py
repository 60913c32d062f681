"""A migrated database of the test's own, and a look into it."""

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from derops_headend.storage.database import Database
from derops_headend.storage.migrating import migrate

Query = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database.connect(database_url, "log")
    yield database
    database.close()


@pytest.fixture
def query(database_url: str) -> Iterator[Query]:
    """Return a function that runs SQL on the migrated database, on a connection of its own."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        migrate(connection)

        def run(text: str, *arguments: object) -> list[tuple[Any, ...]]:
            return connection.execute(text.encode(), arguments or None).fetchall()

        yield run
