"""Ways in which the database of a stack stores nothing; each mends at the end of its block."""

from collections.abc import Iterator
from contextlib import contextmanager

from tests.stack.postgres import WRITER
from tests.stack.stack import Stack

from derops_headend.storage.roles import roles_sql

FULL = """
    create function no_room() returns trigger language plpgsql as $$ begin
        raise exception 'could not extend file "base/1/2": No space left on device'
            using errcode = 'disk_full';
    end $$;
    create trigger no_room before update on log_offset execute function no_room();
"""
"""What PostgreSQL answers on a full disk, with its code."""


@contextmanager
def stopped(stack: Stack) -> Iterator[None]:
    stack.postgres.process.terminate()
    try:
        yield
    finally:
        stack.postgres.start_again()


@contextmanager
def refusing(stack: Stack) -> Iterator[None]:
    with stack.postgres.superuser("derops") as connection:
        connection.execute(f"alter role {WRITER} password 'another'".encode())
        connection.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", [WRITER]
        )
    try:
        yield
    finally:
        stack.postgres.apply_roles("derops", roles_sql())


@contextmanager
def full(stack: Stack) -> Iterator[None]:
    with stack.postgres.superuser("derops") as connection:
        connection.execute(FULL.encode())
    try:
        yield
    finally:
        with stack.postgres.superuser("derops") as connection:
            connection.execute(b"drop function no_room cascade")
