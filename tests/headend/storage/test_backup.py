"""A dump of the database is restored as the documentation says, on both engines."""

import os
import subprocess
from datetime import timedelta
from typing import Any

import psycopg
import pytest
from tests.headend.storage.storing import NOW, Sample, Store, us
from tests.stack.postgres import WRITER, PostgresServer

from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.roles import roles_sql


@pytest.mark.parametrize("may_create", [True, False], ids=["TimescaleDB", "native partitions"])
def test_a_dump_is_restored_with_rows_and_rights(
    timescale_server: PostgresServer, may_create: bool
) -> None:
    opened = timescale_server  # the other one may lack pg_dump
    name = "backed_up"
    url = opened.create_for_roles(name, roles_sql())
    if not may_create:
        with opened.superuser(name) as connection:
            connection.execute("drop extension if exists timescaledb")
            connection.execute(f"revoke create on database {name} from {WRITER}")
    store(url, "before", Sample(us(NOW), 1.0))
    dump = run(opened, "pg_dump", "--format=custom", name)

    opened.drop_database(name)
    # Without it TimescaleDB would mend its tables while they are filled; others do not know it.
    options = {"PGOPTIONS": "-c timescaledb.restoring=on"}
    arguments = ["--create", "--exit-on-error", "--dbname=postgres"]
    run(opened, "pg_restore", *arguments, stdin=dump, **options)

    store(opened.url(name, WRITER), "after", Sample(us(NOW + timedelta(seconds=1)), 2.0))
    with psycopg.connect(opened.url(name, WRITER)) as connection:
        assert connection.execute("select count(*) from telemetry").fetchone() == (2,)
        extension = "select count(*) from pg_extension where extname = 'timescaledb'"
        assert connection.execute(extension).fetchone() == (int(may_create),)
    opened.drop_database(name)


def store(url: str, log_id: str, sample: Sample) -> None:
    database = WriterDatabase.connect(url, log_id)
    Store(database)([sample])
    database.close()


def run(
    server: PostgresServer, program: str, *arguments: str, stdin: bytes = b"", **environment: str
) -> bytes:
    with server.superuser() as connection:
        info: Any = connection.info
        access = {
            "PGHOST": info.host, "PGPORT": str(info.port),
            "PGUSER": info.user, "PGPASSWORD": info.password,
        }  # fmt: skip
    done = subprocess.run(
        server.installation.command(program, *arguments),
        env=os.environ | access | environment, input=stdin, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout
