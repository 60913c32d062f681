"""What a store has only grows, and says which programs can use it: else nobody could roll back."""

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.stack import places

from derops.sqlite import Schema
from derops_agent.asset import ledger
from derops_agent.asset.ledger import Ledger
from derops_agent.telemetry import outbox_store
from derops_agent.telemetry.outbox_store import OutboxStore
from derops_headend.eventlog import sqlite as event_log
from derops_headend.eventlog.sqlite import SqliteEventLog
from derops_headend.gateway import desired_store
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.storage.schema import migrations, readable_from

PAGE = places.REPOSITORY / "docs" / "runbooks" / "roll-back.md"
LAST_WITHOUT_NOTE = 9
"""Migrations up to this one were made before there were notes, and are as they are."""

_BODY = re.compile(r"\$(\w*)\$.*?\$\1\$", re.DOTALL)
_TAKEN_AWAY = [
    re.compile(pattern)
    for pattern in (
        r"\bdrop\b(?! not null| default)",
        r"\brename\b",
        r"\btruncate\b",
        r"\bdelete from\b",
        r"\brevoke\b",
        r"\balter (column )?\w+ (set data )?type\b",
        r"\bset not null\b",
        r"\badd (constraint|primary key|unique|check|foreign key|exclude)\b",
    )
]
_ADDED = re.compile(r"\badd (?:column )?(?:if not exists )?\w+ ([^,;]*)")


def statements(text: str) -> Iterator[str]:
    """Yield the statements of a file, in small letters: of a function its head alone."""
    text = re.sub(r"--[^\n]*", "", text).lower()
    bodies: list[str] = []

    def put_aside(found: re.Match[str]) -> str:
        bodies.append(found[0])
        return f" body{len(bodies) - 1} "

    for each in _BODY.sub(put_aside, text).split(";"):
        statement = " ".join(each.split())
        if statement.startswith("do "):  # it runs now, unlike what a function does
            inner = re.sub(r"body(\d+)", lambda found: bodies[int(found[1])], statement)
            yield from (" ".join(part.split()) for part in inner.split(";") if part.strip())
        elif statement:
            yield statement


def find_taken_away(text: str) -> list[str]:
    """Return the statements that an older program could miss something after."""
    found, new = [], set[str]()
    for statement in statements(text):
        if made := re.match(r"create table (?:if not exists )?(\w+)", statement):
            new.add(made[1])
            continue
        unique = re.match(r"create unique index .*?\bon (?:only )?(\w+)", statement)
        altered = re.match(r"alter table (?:if exists )?(?:only )?(\w+)", statement)
        if (unique or altered) and (unique or altered)[1] in new:  # type: ignore[index]
            continue
        asked = any(
            "not null" in each and "default" not in each for each in _ADDED.findall(statement)
        )
        if unique or asked or any(pattern.search(statement) for pattern in _TAKEN_AWAY):
            found.append(statement)
    return found


NOTED = {number: text for number, text in migrations().items() if number > LAST_WITHOUT_NOTE}


def test_a_migration_takes_nothing_away_from_older_programs() -> None:
    assert {number: find_taken_away(text.decode()) for number, text in NOTED.items()} == {
        number: [] for number in NOTED
    }


def test_a_migration_says_from_which_version_on_programs_can_use_it() -> None:
    notes = [readable_from(number, text) for number, text in migrations().items()]

    assert notes == sorted(notes), "it never goes back"
    for number in NOTED:
        assert readable_from(number, NOTED[number]) < number, f"{number}: -- readable from N"


@pytest.mark.parametrize(
    "statement",
    [
        "drop table asset",
        "alter table asset drop column uid",
        "alter table asset rename column uid to id",
        "alter table asset alter column uid type uuid",
        "alter table asset alter uid set data type uuid",
        "alter table asset alter column uid set not null",
        "alter table asset add column owner text not null",
        "alter table asset add owner text not null",
        "alter table asset add constraint x check (uid <> '')",
        "alter table asset add primary key (uid)",
        "create unique index on asset (uid)",
        "delete from asset",
        "revoke select on asset from derops_reader",
        "do $$ begin alter table asset drop column uid; end $$",
        "create table b (a int); alter table asset drop column uid",
    ],
)
def test_what_an_older_program_would_miss_is_found(statement: str) -> None:
    assert find_taken_away(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "alter table asset add column owner text",
        "alter table asset add column owner text not null default ''",
        "alter table asset add column owner text default '' not null",
        "create table b (a int not null); alter table b add primary key (a)",
        "create table b (a int); create unique index on b (a)",
        "create index on asset (uid)",
        "alter table asset alter column uid drop not null",
        "create function f() returns void language plpgsql as $$ begin delete from b; end $$",
        "create or replace view v as select 1 -- drop table asset",
    ],
)
def test_what_only_adds_passes(statement: str) -> None:
    assert find_taken_away(statement) == []


def test_a_migration_that_was_none_of_these_is_found() -> None:
    assert find_taken_away(migrations()[6].decode())


STORES: dict[str, tuple[Schema, Callable[[Path], object]]] = {
    "ledger": (ledger.SCHEMA, lambda path: Ledger(path).close()),
    "outbox.db": (outbox_store.SCHEMA, lambda path: OutboxStore(path).close()),
    "desired.db": (desired_store.SCHEMA, lambda path: DesiredStore(path, 1).close()),
    "events.db": (event_log.SCHEMA, lambda path: SqliteEventLog(path).close()),
}
TABLES = {
    ("ledger", 2): "a6973509ae6640fa",
    ("outbox.db", 1): "0f87f17ad6943538",
    ("desired.db", 2): "5ec43903ad26a9af",
    ("events.db", 1): "ef55d8f63364670e",
}
"""By file and version: what its tables are. Versions are only added."""


@pytest.mark.parametrize("name", STORES)
def test_tables_that_change_have_a_new_version(tmp_path: Path, name: str) -> None:
    schema, make = STORES[name]
    make(tmp_path / name)
    with closing(sqlite3.connect(tmp_path / name)) as connection:
        made = connection.execute("SELECT sql FROM sqlite_schema ORDER BY name").fetchall()
    words = " ".join(" ".join(sql.split()) for (sql,) in made if sql)

    assert hashlib.sha256(words.encode()).hexdigest()[:16] == TABLES[name, schema.version]


def test_the_page_on_rolling_back_has_the_versions_of_all_stores() -> None:
    rows = re.findall(r"^\| ([^|]+) \| (\d+) \| (\d+) \|", PAGE.read_text(), re.MULTILINE)
    newest, text = max(migrations().items())
    expected = {
        name: (schema.version, schema.readable_from) for name, (schema, _) in STORES.items()
    }
    expected["database"] = (newest, readable_from(newest, text))

    found: dict[str, list[tuple[int, int]]] = {}
    for name, version, oldest in rows:
        found.setdefault(name.strip("`"), []).append((int(version), int(oldest)))
    assert {name: versions[-1] for name, versions in found.items()} == expected
    for versions in found.values():
        assert versions == sorted(versions)
        assert [oldest for _, oldest in versions] == sorted(oldest for _, oldest in versions)
