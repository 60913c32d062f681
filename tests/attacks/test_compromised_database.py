"""Attacks of whoever has the database: what it can reach from there.

The writer is the only program that speaks to it, and nothing that orders or ends a setpoint hears
of what is in it.
"""

import subprocess
import sys

import psycopg
import pytest


@pytest.mark.parametrize(
    "module", ["derops_operator.main", "derops_headend.gateway.server", "derops_agent.main"]
)
def test_no_part_that_orders_reads_the_database(module: str) -> None:
    """B1: rows are forged so that operator, gateway or agent act on them."""
    code = f"import sys, {module}; sys.exit('psycopg' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_writers_role_is_no_superuser(database_url: str) -> None:
    """B2: a thief of the writer's URL reads the server's files, or runs programs there."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        role = connection.execute(
            "select rolsuper, rolcreaterole, rolcreatedb, rolbypassrls from pg_roles"
            " where rolname = current_user"
        ).fetchone()
        assert role == (False, False, False, False)
        for statement in (
            "select pg_read_file('/etc/passwd')",
            "copy (select 1) to program 'true'",
            "alter system set log_statement = 'all'",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)
