"""The SQL in the documentation is taken by a database that the writer has made."""

import re
from pathlib import Path

import psycopg
import pytest
from tests.stack import places

from derops_headend.storage.schema import migrate

DOCS = places.REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))


def queries(page: Path) -> list[str]:
    """Return the queries of a page: of its blocks, and what psql gets as one quoted argument."""
    text = page.read_text(encoding="utf-8")
    quoted = re.findall(r'(?:^DATABASE |psql .* -c )"\s*(select[^"]+)"', text, re.MULTILINE)
    blocks = re.findall(r"^```sql\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [*(block for block in blocks if block.startswith(("select", "with"))), *quoted]


QUERIES = [
    pytest.param(query, id=f"{page.relative_to(DOCS)} {number}")
    for page in PAGES
    for number, query in enumerate(queries(page), 1)
]


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_taken(database_url: str, query: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        migrate(connection)
        found = connection.execute(query)

        assert found.description is not None


def test_the_pages_have_queries() -> None:
    assert len(QUERIES) >= 10
