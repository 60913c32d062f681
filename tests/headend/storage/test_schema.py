"""The schema arrives once, whoever brings it, and never goes backwards."""

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from derops.errors import SchemaTooNewError
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.schema import (
    SchemaState,
    find_state,
    migrate,
    migrations,
    readable_from,
)
from derops_headend.writing.binary_copy import COLUMNS


def run(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as connection:
        return migrate(connection)


def test_versions_are_numbered_without_holes() -> None:
    assert list(migrations()) == list(range(1, len(migrations()) + 1))


def test_twice_is_once(database_url: str) -> None:
    assert run(database_url) == run(database_url) == max(migrations())

    with psycopg.connect(database_url) as connection:
        versions = connection.execute("select version from schema_version order by 1").fetchall()
        columns = connection.execute(
            "select column_name from information_schema.columns "
            "where table_name = 'telemetry' order by ordinal_position"
        ).fetchall()
        applied = connection.execute(
            "select version, readable_from from schema_applied order by 1"
        ).fetchall()
    known = [(version, readable_from(version, text)) for version, text in migrations().items()]
    assert applied == known
    assert {version for (version,) in versions} == {oldest for _, oldest in known}
    assert {name for (name,) in columns} == set(COLUMNS)


def test_programs_that_start_together_take_turns(database_url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(run, [database_url] * 8))

    assert results == [max(migrations())] * 8


def test_a_newer_database_is_refused_and_left_as_it_is(database_url: str) -> None:
    with psycopg.connect(database_url, autocommit=True) as connection:
        migrate(connection)
        connection.execute("insert into schema_version (version) values (99)")

        with pytest.raises(SchemaTooNewError, match="99"):
            migrate(connection)


def as_newer_programs_leave(url: str, monkeypatch: pytest.MonkeyPatch, note: str) -> int:
    """Migrate as a program with two more migrations would; return the version of this one."""
    newest = max(migrations())
    later = migrations() | {
        newest + 1: b"-- readable from %d\nalter table asset add column later text" % newest,
        newest + 2: f"{note}create table later (a int)".encode(),
    }
    with monkeypatch.context() as newer:
        newer.setattr("derops_headend.storage.schema.migrations", lambda: later)
        assert run(url) == newest + 2
    return newest


def test_a_database_whose_note_allows_this_version_is_used_and_left_as_it_is(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(database_url)
    newest = as_newer_programs_leave(
        database_url, monkeypatch, f"-- readable from {max(migrations())}\n"
    )

    assert run(database_url) == newest + 2
    with psycopg.connect(database_url, autocommit=True) as connection:
        assert find_state(connection) == SchemaState(newest + 2, newest)
        # What programs ask that know no note: they go on too.
        row = connection.execute("select max(version) from schema_version").fetchone()
        assert row == (newest,)
    database = WriterDatabase.connect(database_url, "log")
    database.close()


def test_a_database_whose_note_does_not_is_refused_by_the_version_that_can(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    newest = as_newer_programs_leave(database_url, monkeypatch, "")

    words = f"by programs of schema version {newest + 2} or newer, and this one has {newest}: run"
    with pytest.raises(SchemaTooNewError, match=words):
        run(database_url)


def test_a_failed_migration_leaves_nothing(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = migrations() | {2: b"create table half (); select nonsense"}
    monkeypatch.setattr("derops_headend.storage.schema.migrations", lambda: broken)

    with psycopg.connect(database_url, autocommit=True) as connection:
        with pytest.raises(psycopg.errors.UndefinedColumn):
            migrate(connection)
        tables = connection.execute(
            "select count(*) from pg_tables where schemaname = 'public'"
        ).fetchone()
    assert tables == (0,)


def test_steps_that_were_told_before_are_those_of_their_asset(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = {version: text for version, text in migrations().items() if version < 6}
    with monkeypatch.context() as before:
        before.setattr("derops_headend.storage.schema.migrations", lambda: old)
        run(database_url)
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(
            "with named as (insert into asset (namespace, name, uid) values "
            "('site', 'battery', 'u'), ('other', 'thief', 't') returning asset_id, name), told as ("
            "values ('battery', 'Headend', 'Submitted', 'd1'), "
            "('battery', 'Agent', 'Acked', 'd1'), "
            "('thief', 'Agent', 'Complete', 'd1'), ('thief', 'Agent', 'Complete', 'd2')) "
            "insert into dispatch_event (event_id, asset_id, dispatch_uid, actor, phase, reason, "
            "message, at, received_at) select gen_random_uuid(), asset_id, column4, column2, "
            "column3, '', '', now(), now() from told join named on name = column1"
        )

        run(database_url)

        subjects = connection.execute(
            "select subject, count(*) from dispatch_event group by 1 order by 1"
        ).fetchall()
        history = connection.execute(
            "select dispatch_uid, namespace, phase from dispatch_history order by 1"
        ).fetchall()
    assert subjects == [("other/thief", 2), ("site/battery", 2)]
    assert history == [("d1", "site", "Acked"), ("d2", "other", "Complete")]
