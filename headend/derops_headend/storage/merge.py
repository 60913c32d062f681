"""Adds rows to a table with a key; some of them may be there already."""

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import sql


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyedTable:
    """A table, its key, what two rows of one key are compared by, and what is not compared.

    ``ts`` is part of the key.
    """

    name: str
    key: tuple[str, ...]
    compared: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns."""
        return (*self.key, *self.compared, *self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """How many rows are new, and which ones differ from those that hold their place."""

    stored: int
    differing: tuple[int, ...]


def merge(
    connection: psycopg.Connection, table: KeyedTable, load: Callable[[psycopg.Copy], None]
) -> Merged:
    """Add the rows whose keys are free; of two new rows with one key, the first.

    Args:
        connection: In a transaction.
        table: The table that gets the rows.
        load: Writes binary COPY rows: a number (int4), then the table's columns in order.
    """
    names = {
        "table": sql.Identifier(table.name),
        "stage": sql.Identifier(f"{table.name}_stage"),
        "key": _list(table.key),
        "columns": _list(table.columns),
    }
    connection.execute(
        sql.SQL("create temporary table {stage} as select 0 as n, {columns} from {table} limit 0")
        .format(**names)
    )  # fmt: skip
    statement = sql.SQL("copy {stage} (n, {columns}) from stdin (format binary)").format(**names)
    with connection.cursor() as cursor, cursor.copy(statement) as copy:
        load(copy)
    stored = connection.execute(
        sql.SQL(
            "insert into {table} ({columns}) select distinct on ({key}) {columns} from {stage} "
            "order by {key}, n on conflict ({key}) do nothing"
        ).format(**names)
    ).rowcount
    # The limits keep the partitions of other days out of the plan.
    limits = connection.execute(
        sql.SQL("select min(ts), max(ts) from {stage}").format(**names)
    ).fetchone()
    differing = connection.execute(
        sql.SQL(
            "select n from {stage} s join {table} t using ({key}) "
            "where t.ts between %s and %s and ({new}) is distinct from ({old}) order by n"
        ).format(new=_list(table.compared, "s"), old=_list(table.compared, "t"), **names),
        limits,
        prepare=False,
    ).fetchall()
    connection.execute(sql.SQL("drop table {stage}").format(**names))
    return Merged(stored=stored, differing=tuple(n for (n,) in differing))


def _list(columns: tuple[str, ...], table: str = "") -> sql.Composed:
    prefix = (table,) if table else ()
    return sql.SQL(", ").join(sql.Identifier(*prefix, column) for column in columns)
