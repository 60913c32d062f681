"""The database server is real, private and ends without a trace."""

import psycopg
import pytest
from tests.stack.postgres import PostgresServer


def test_a_server_serves_databases_and_ends() -> None:
    with PostgresServer() as server:
        url = server.create_database("telemetry")
        with psycopg.connect(url) as connection:
            assert connection.execute("show fsync").fetchone() == ("on",)
            assert connection.execute("select current_database()").fetchone() == ("telemetry",)
        server.drop_database("telemetry")
        with pytest.raises(psycopg.OperationalError, match="does not exist"):
            psycopg.connect(url)
        process = server.process

    assert not process.alive
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_who_uses_a_database_is_no_superuser(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        assert connection.execute("show is_superuser").fetchone() == ("off",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("select pg_read_file('postgresql.conf')")


def test_a_wrong_password_is_refused() -> None:
    with PostgresServer() as server:
        url = server.url("postgres").replace("derops:", "derops:x")
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(url)


def test_each_test_has_a_database_of_its_own(database_url: str) -> None:
    with psycopg.connect(database_url) as connection:
        tables = connection.execute(
            "select count(*) from pg_tables where schemaname = 'public'"
        ).fetchone()
    assert tables == (0,)
