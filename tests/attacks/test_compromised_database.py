"""Attacks of whoever has the database: what it can reach from there.

The writer is the only program that speaks to it, and nothing that orders or ends a setpoint hears
of what is in it.
"""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module", ["derops_operator.main", "derops_headend.gateway.server", "derops_agent.main"]
)
def test_no_part_that_orders_reads_the_database(module: str) -> None:
    """B1: rows are forged so that operator, gateway or agent act on them."""
    code = f"import sys, {module}; sys.exit('psycopg' in sys.modules)"

    subprocess.run([sys.executable, "-c", code], check=True)
