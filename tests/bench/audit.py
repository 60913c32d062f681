"""P21: the audit alone: from the calls through the file into the database, and its verification."""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import psycopg
import uvloop
from tests.api.auditing.making import make_call, make_create
from tests.bench.results import Result
from tests.stack.postgres import API, PostgresServer
from tests.waiting import until

from derops_headend.api.audit.trail import AuditTrail
from derops_headend.storage.audit import row_of
from derops_headend.storage.audit_verification import verify
from derops_headend.storage.chain import ChainedRecord
from derops_headend.storage.roles import roles_sql
from derops_headend.storage.schema import migrate

PROMISED_PER_SECOND = 2000
_AT_ONCE, _SECONDS, _ROUND_ROWS = 64, 8.0, 700
_ANNOUNCEMENTS = 300


def measure() -> Iterator[Result]:
    """Print records a second end to end, how long a call waits, and what verifies."""
    with PostgresServer() as server, tempfile.TemporaryDirectory() as directory:
        writer = server.create_for_roles("audit", roles_sql())
        with psycopg.connect(writer, autocommit=True) as owner:
            migrate(owner)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            url = server.url("audit", API)
            rate, processor, announcing = runner.run(_run(Path(directory) / "api-0", url))
        with psycopg.connect(writer, autocommit=True) as owner:
            bare = _bare_rows_per_second(owner)
            begun = time.perf_counter()
            findings = list(verify(owner))
            verified = _count(owner) / (time.perf_counter() - begun)
    if findings:
        raise RuntimeError(f"the audit does not verify: {findings[0]}")
    yield Result(
        name="P21_audit_records",
        value=rate,
        unit="records/s",
        limit=PROMISED_PER_SECOND,
        goal=">= 1",
    )
    yield Result(
        name="P21_audit_processor",
        value=1e6 * processor,
        unit="us/record",
        limit=1e6 / PROMISED_PER_SECOND,
    )
    yield Result(
        name="P21_audit_records_of_bare_inserts",
        value=rate,
        unit="records/s",
        limit=bare,
        goal=">= 0.3",
    )
    yield Result(name="P21_audit_announce_p50", value=1000 * announcing, unit="ms", limit=5)
    yield Result(
        name="P21_audit_verified",
        value=verified,
        unit="records/s",
        limit=bare,
        goal=">= 1",
    )


async def _run(directory: Path, url: str) -> tuple[float, float, float]:
    """Return records that are in the database a second, processor time of one, of announcing one.

    The times are in s, the last one is a median.
    """
    trail = AuditTrail.open(
        directory, replica="api-0", connect=lambda: psycopg.connect(url, autocommit=True)
    )
    await trail.start()
    await until(lambda: trail.sink.connected)
    first = trail.file.head.seq
    begun, busy = time.perf_counter(), time.process_time()

    async def call() -> None:
        while time.perf_counter() - begun < _SECONDS:
            await trail.complete(make_call(), 200, "", 1000)

    await asyncio.gather(*(call() for _ in range(_AT_ONCE)))
    await until(lambda: not trail.sink.behind, patience_seconds=120)
    count = trail.file.head.seq - first
    rate = count / (time.perf_counter() - begun)
    processor = (time.process_time() - busy) / count
    times = []
    for number in range(_ANNOUNCEMENTS):
        create = make_create(f"{number:064}")
        before = time.perf_counter()
        await trail.announce(create)
        times.append(time.perf_counter() - before)
        await trail.complete(create, 201, "", 1000)
    await trail.close()
    return rate, processor, median(times)


def _bare_rows_per_second(owner: psycopg.Connection) -> float:
    """Return rows a second of the same kind by COPY into a table with the same indexes."""
    owner.execute("create table bare (like audit_event including all)")
    rows = owner.execute(
        "select chain, seq, hash, at, body from audit_event order by seq limit 20000"
    ).fetchall()
    records = [row_of(ChainedRecord(*row)) for row in rows]
    begun = time.perf_counter()
    for number in range(0, len(records), _ROUND_ROWS):
        _copy(owner, records[number : number + _ROUND_ROWS])
    rate = len(records) / (time.perf_counter() - begun)
    owner.execute("drop table bare")
    return rate


def _copy(owner: psycopg.Connection, rows: Sequence[tuple[object, ...]]) -> None:
    columns = (
        "chain, seq, hash, at, body, stage, request_id, caller, namespace, verb, resource, name, "
        "object_uid, status, idempotency_key_sha256"
    )
    with (
        owner.transaction(),
        owner.cursor() as cursor,
        cursor.copy(f"copy bare ({columns}) from stdin".encode()) as copy,
    ):
        for row in rows:
            copy.write_row(row)


def _count(owner: psycopg.Connection) -> int:
    row = owner.execute("select count(*) from audit_event").fetchone()
    return int(row[0]) if row else 0
