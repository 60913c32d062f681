"""A dump of the database is restored as the documentation says, on both engines."""

import os
import subprocess
from datetime import timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest
from tests.headend.storage.storing import NOW, Sample, Store, us
from tests.headend.storage.test_writer import Running, connector, samples
from tests.stack.postgres import WRITER, PostgresServer
from tests.waiting import eventually

from derops_headend.eventlog.sqlite import SqliteEventLog
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.roles import roles_sql
from derops_headend.storage.schema import migrate


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

    restore(opened, name, dump)

    store(opened.url(name, WRITER), "after", Sample(us(NOW + timedelta(seconds=1)), 2.0))
    with psycopg.connect(opened.url(name, WRITER)) as connection:
        assert connection.execute("select count(*) from telemetry").fetchone() == (2,)
        extension = "select count(*) from pg_extension where extname = 'timescaledb'"
        assert connection.execute(extension).fetchone() == (int(may_create),)
    opened.drop_database(name)


async def test_a_writer_goes_on_with_a_restored_database_and_names_the_hole(
    timescale_server: PostgresServer, tmp_path: Path
) -> None:
    opened, name = timescale_server, "restored_below_a_writer"
    url = opened.create_for_roles(name, roles_sql())
    with psycopg.connect(url, autocommit=True) as connection:
        migrate(connection)
    path = tmp_path / "events.db"
    log = SqliteEventLog(path)
    with Running(path, connector(url)):
        for number in range(3):  # records 1 to 3: in the dump
            await log.append([samples(number)])
        eventually(lambda: rows(url, COUNT) == [(30,)], "what comes before the dump")
        dump = run(opened, "pg_dump", "--format=custom", name)
        for number in range(3, 6):  # records 4 to 6: after it, and gone from the log
            await log.append([samples(number)])
        eventually(lambda: rows(url, COUNT) == [(60,)], "what comes after the dump")
        eventually(lambda: log.bounds()[0] == 6, "a trimmed log")
    restore(opened, name, dump)

    with Running(path, connector(opened.url(name, WRITER))):
        await log.append([samples(6)])
        eventually(
            lambda: rows(url, "select committed_offset from log_offset") == [(7,)], "goes on"
        )
    log.close()

    assert rows(url, "select reason, detail from quarantine") == [
        ("RecordsMissing", "records 4 to 5 were not in the log")
    ]
    # The log keeps its last record; its samples are stored anew.
    assert rows(url, COUNT) == [(50,)]
    opened.drop_database(name)


COUNT = "select count(*) from telemetry"


def rows(url: str, text: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url) as connection:
        return connection.execute(text.encode()).fetchall()


def restore(server: PostgresServer, name: str, dump: bytes) -> None:
    """Put a dump in the place of a database, as docs/how-to/give-it-a-database.md says it."""
    server.drop_database(name)
    # Without it TimescaleDB would mend its tables while they are filled; others do not know it.
    options = {"PGOPTIONS": "-c timescaledb.restoring=on"}
    arguments = ["--create", "--exit-on-error", "--dbname=postgres"]
    run(server, "pg_restore", *arguments, stdin=dump, **options)


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
