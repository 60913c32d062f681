"""Verifies that the audit in the database is as it was recorded: every record, in its place."""

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple

import psycopg

from derops_headend.storage.audit import COLUMNS, MOST_BODY, row_of
from derops_headend.storage.audit_retention import DROPPED, RETENTION
from derops_headend.storage.chain import NOTHING, ChainedRecord, Head, hash_of

_AT_ONCE = 1000
# Whoever may add records may add such as end who reads them: no longer than ours, in years that
# there are, they are not what they say.
_READABLE = {
    **{name: f"left(it.{name}, 1000)" for name, kind in COLUMNS.items() if kind == "text"},
    "at": "least(greatest(it.at, '0001-01-02Z'), '9999-12-30Z')",
    "body": f"left(it.body, {MOST_BODY} + 1)",
}
_ALL = (
    f"select {', '.join(_READABLE.get(name, f'it.{name}') for name in COLUMNS)} "  # noqa: S608
    "from audit_event it order by it.chain, it.seq, it.at"
)


class Finding(NamedTuple):
    """A place in a chain where the audit is not as it was written down."""

    chain: str
    seq: int
    what: str

    def __str__(self) -> str:
        return f"chain {self.chain} seq {self.seq}: {self.what}"


class Dropped(NamedTuple):
    """Records of a chain that the writer dropped at the end of their retention, as it recorded."""

    first: int
    last: int
    hash: str
    """The hash of the last record."""


@dataclass(slots=True)
class VerificationCount:
    """What was looked at."""

    records: int = 0
    chains: int = 0


@dataclass(slots=True)
class _Chain:
    """How far a chain was followed."""

    name: str
    dropped: list[Dropped]
    heads: Mapping[int, str]
    seq: int = 0
    hash: str = NOTHING
    """The hash of the record ``seq``."""

    seen: set[int] = field(default_factory=set)
    """Heads that were met."""


def verify(
    connection: psycopg.Connection,
    heads: Iterable[Head] = (),
    tally: VerificationCount | None = None,
) -> Iterator[Finding]:
    """Yield what is not as it was written down; nothing = all is well.

    Args:
        connection: In autocommit mode; one moment of the database is looked at.
        heads: Heads of chains, kept where nobody who can write to the database can write.
        tally: Is given what was looked at.
    """
    tally = tally or VerificationCount()
    told = _by_chain(heads)
    with connection.transaction():
        connection.execute("set transaction isolation level repeatable read, read only")
        dropped = _read_drops(connection)
        chain: _Chain | None = None
        for row in _rows(connection):
            if chain is None or row[0] != chain.name:
                if chain is not None:
                    yield from _end(chain)
                chain = _Chain(row[0], dropped.get(row[0], []), told.pop(row[0], {}))
                tally.chains += 1
            tally.records += 1
            yield from _check(chain, row)
        if chain is not None:
            yield from _end(chain)
    for name, known in told.items():
        yield from _end(_Chain(name, dropped.get(name, []), known))


def export(
    connection: psycopg.Connection, since: datetime | None = None, until: datetime | None = None
) -> Iterator[str]:
    """Yield records by time, each exactly as it was hashed; ``until`` is left out."""
    with connection.transaction(), connection.cursor("exported") as cursor:
        cursor.itersize = _AT_ONCE
        cursor.execute(
            "select body from audit_event where (%(since)s::timestamptz is null or "
            "at >= %(since)s) and (%(until)s::timestamptz is null or at < %(until)s) "
            "order by at, chain, seq",
            {"since": since, "until": until},
        )
        for (body,) in cursor:
            yield body


def _rows(connection: psycopg.Connection) -> Iterator[tuple[Any, ...]]:
    with connection.cursor("verified") as cursor:
        cursor.itersize = _AT_ONCE
        cursor.execute(_ALL.encode())
        yield from cursor


def _read_drops(connection: psycopg.Connection) -> dict[str, list[Dropped]]:
    found: dict[str, list[Dropped]] = {}
    rows = connection.execute(
        "select body from audit_event where stage = %s and starts_with(chain, %s)",
        (DROPPED, RETENTION),
    )
    for (body,) in rows:
        dropped = _facts(body).get("dropped")
        for each in dropped if isinstance(dropped, list) else ():
            with suppress(LookupError, TypeError, ValueError):  # whoever added it: it tells nothing
                told = Dropped(int(each["first"]), int(each["last"]), str(each["hash"]))
                found.setdefault(str(each["chain"]), []).append(told)
    return found


def _by_chain(heads: Iterable[Head]) -> dict[str, dict[int, str]]:
    found: dict[str, dict[int, str]] = {}
    for head in heads:
        found.setdefault(head.chain, {})[head.seq] = head.hash
    return found


def _check(chain: _Chain, row: tuple[Any, ...]) -> Iterator[Finding]:
    """Look at the next record of a chain."""
    record = ChainedRecord(*row[: len(ChainedRecord._fields)])
    facts = _facts(record.body)

    def finding(what: str) -> Finding:
        return Finding(chain.name, record.seq, what)

    if hash_of(record.body) != record.hash:
        yield finding("was edited: it does not have its hash")
    elif not _is_row_of(record, facts, row):
        yield finding("was edited: its columns are not what the record says")
    if record.seq == chain.seq:
        yield finding("is there twice")
    elif record.seq > chain.seq + 1:
        yield from _check_gap(chain, record.seq, facts.get("prev"))
    elif facts.get("prev") != chain.hash:
        yield finding("does not follow the record before it: one of them was replaced")
    told = chain.heads.get(record.seq)
    if told is not None:
        chain.seen.add(record.seq)
        if told != record.hash:
            yield finding("is another record than the one whose hash was told")
    chain.seq, chain.hash = record.seq, record.hash


def _check_gap(chain: _Chain, seq: int, prev: object) -> Iterator[Finding]:
    """Look at what is not there before a record."""
    missing = range(chain.seq + 1, seq)
    left = missing.start
    for told in sorted(chain.dropped):
        if told.first <= left <= told.last:
            left = told.last + 1
        if told.last == seq - 1 and told.hash != prev:
            yield Finding(chain.name, seq, "does not follow the record that was dropped before it")
    if left < missing.stop:
        gone = f"records {left} to {missing[-1]} are" if left < missing[-1] else "it is"
        yield Finding(chain.name, left, f"{gone} not there, and no drop of them was told")


def _end(chain: _Chain) -> Iterator[Finding]:
    """Look whether all heads that were told of a chain were met."""
    for seq, known in sorted(chain.heads.items()):
        if seq in chain.seen:
            continue
        for told in chain.dropped:
            if told.first <= seq <= told.last:
                if seq == told.last and known != told.hash:
                    yield Finding(chain.name, seq, "was told with another hash than its drop")
                break
        else:
            if seq > chain.seq:
                where = f"the chain ends at {chain.seq}" if chain.seq else "there is no such chain"
                yield Finding(chain.name, seq, f"was told, and is not there: {where}")


def _is_row_of(record: ChainedRecord, facts: Mapping[str, Any], row: tuple[Any, ...]) -> bool:
    try:
        at = datetime.fromisoformat(facts["at"])
        place = (facts["chain"], facts["seq"], at)
        return place == (record.chain, record.seq, record.at) and row_of(record) == row
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def _facts(body: str) -> Mapping[str, Any]:
    try:
        facts = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return facts if isinstance(facts, dict) else {}
