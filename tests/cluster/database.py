"""Questions to the database in the cluster, asked by psql in its own pod."""

import json
from typing import Any

from tests.cluster.cluster import Cluster

NAMESPACE = "derops-system"
POD = "derops-postgresql-0"


def rows(cluster: Cluster, query: str) -> list[dict[str, Any]]:
    """Return the rows of a query by the names of their columns."""
    text = cluster.run_in(
        POD, NAMESPACE,
        "psql", "-X", "-q", "-At", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "derops",
        "-c", f"select to_json(found) from ({query}) found",
    )  # fmt: skip
    return [json.loads(line) for line in text.splitlines()]
