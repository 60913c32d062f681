"""``derops-headend audit``: run as people and programs run it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import psycopg
import pytest
from tests.headend.storage.test_audit import make_chain
from tests.stack.postgres import READER, PostgresServer

from derops_headend.storage.audit import store
from derops_headend.storage.roles import roles_sql
from derops_headend.storage.schema import migrate

PROGRAM = Path(sys.executable).parent / "derops-headend"
NAME = "audit_command"
NOW = datetime(2026, 11, 30, 12, tzinfo=UTC)


@pytest.fixture
def url(postgres_server: PostgresServer) -> Iterator[str]:
    """Return the reader's URL of a database with a chain of 20 records."""
    writer = postgres_server.create_for_roles(NAME, roles_sql())
    with psycopg.connect(writer, autocommit=True) as connection:
        migrate(connection)
        store(connection, make_chain("api-0/1", 20))
    yield postgres_server.url(NAME, READER)
    postgres_server.drop_database(NAME)


def run(url: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [PROGRAM, "audit", *arguments],
        env={"PATH": os.environ["PATH"], "DEROPS_WRITER_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def tamper(server: PostgresServer, statement: str) -> None:
    with server.superuser(NAME) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(statement.encode())


def test_what_is_whole_is_said_to_be(url: str) -> None:
    result = run(url, "verify")

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "20 records in 1 chains, and no heads: all is as it was written down\n"


def test_what_is_not_is_named(url: str, postgres_server: PostgresServer) -> None:
    tamper(postgres_server, "delete from audit_event where seq in (4, 9)")

    result = run(url, "verify")

    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout.splitlines() == [
        "chain api-0/1 seq 4: it is not there, and no drop of them was told",
        "chain api-0/1 seq 9: it is not there, and no drop of them was told",
        "18 records in 1 chains, and no heads: 2 findings",
    ]


def test_heads_are_taken_from_what_was_printed(
    url: str, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    heads = tmp_path / "heads"
    *_, last = make_chain("api-0/1", 20)
    head = json.dumps({"event": "audit.head", "chain": last.chain, "seq": 20, "hash": last.hash})
    heads.write_text(f"not JSON\n{{}}\n[1]\n2026-11-30T12:00:00Z stdout F {head}\n{head}\n")
    assert run(url, "verify", "--heads", heads).stdout == (
        "20 records in 1 chains, and 1 heads that were told: all is as it was written down\n"
    )

    tamper(postgres_server, "delete from audit_event where seq > 15")

    assert run(url, "verify").returncode == 0
    result = run(url, "verify", "--heads", heads)
    assert result.returncode == 1
    assert result.stdout.startswith(
        "chain api-0/1 seq 20: was told, and is not there: the chain ends at 15\n"
    )


@pytest.mark.parametrize("content", [None, "", "{}\nnothing\n"])
def test_a_file_without_heads_verifies_nothing(
    url: str, tmp_path: Path, content: str | None
) -> None:
    heads = tmp_path / "heads"
    if content is not None:
        heads.write_text(content)

    result = run(url, "verify", "--heads", heads)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"cannot verify: {heads}")


def test_a_database_that_is_not_to_be_had_is_said(url: str) -> None:
    result = run(url.replace(NAME, "nowhere"), "verify")

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith('no audit: database "nowhere" does not exist')


def test_what_is_exported_can_be_verified_by_hand(url: str) -> None:
    lines = run(url, "export").stdout.splitlines()

    assert len(lines) == 20
    for before, after in pairwise(lines):
        assert json.loads(after)["prev"] == sha256(before.encode()).hexdigest()
    since = (NOW + timedelta(seconds=5)).isoformat()
    until = (NOW + timedelta(seconds=8)).isoformat()
    assert run(url, "export", "--since", since, "--until", until).stdout.splitlines() == lines[5:8]
    wrong = run(url, "export", "--since", "2026-11-30T12:00:00")
    assert wrong.returncode == 2
    assert "time zone" in wrong.stderr
