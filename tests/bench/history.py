"""P18 to P20: history at a million dispatches, and what their rows cost the writer."""

import random
import statistics
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial

import psycopg
from tests.bench import limits
from tests.bench.results import Result
from tests.stack.postgres import PostgresServer

from derops.wire.v1 import control_pb2, dispatch_pb2, log_pb2
from derops_headend.storage.database import WriterDatabase
from derops_headend.storage.dispatches import fill
from derops_headend.storage.history import DispatchFilter, DispatchPosition, find, sum_up
from derops_headend.writing.rows import LogSource

DISPATCHES = 1_000_000
ASSETS = 500
BEGIN = datetime(2026, 1, 1, tzinfo=UTC)
PAGE = 100
"""As the API answers, where no limit is given."""

LARGEST_PAGE = 500
_LOOKS = 300
_ROUNDS, _OF_ONE_ROUND = 10, 100

# Nine tenths are of one namespace. Every hundredth has failed, every tenth is one person's order,
# every thousandth another's. Three steps each; what is in a report is what an agent says.
_STEPS = """
    insert into dispatch_event (event_id, asset_id, dispatch_uid, dispatch_name, actor, phase,
      reason, message, at, received_at, subject, created_by, report, report_ledger_id,
      report_sequence, report_received_at)
    select gen_random_uuid(), asset_id, 'dispatch-' || md5(n::text), 'evening-' || n %% 5000,
      case step when 0 then 'Headend' else 'Agent' end, phase, phase || 'Reason', '',
      moment + step * interval '1 minute', moment + step * interval '1 minute', subject,
      case when step = 0 then case when n %% 1000 = 0 then 'ann' when n %% 10 = 1 then 'trader'
        else 'unknown' end end,
      case when step = 2 then jsonb_build_object('phase', phase, 'reason', phase || 'Reason',
        'applied_us', '1760000000000000', 'accepted_us', '1760000000000000',
        'ended_us', '1760000900000000', 'applied_watts', '-5000', 'active_milliseconds', '900000',
        'evidence', 'Effect', 'verified', 'True', 'verified_reason', 'WithinTolerance') end,
      case when step = 2 then 'ledger' end, case when step = 2 then 3 end,
      case when step = 2 then moment + interval '2 minutes' end
    from generate_series(1, %(dispatches)s) as n
    join (select asset_id, namespace || '/' || name as subject from asset) as assets
      on asset_id = case when n %% 10 = 0 then 1 + n %% 50 else 51 + n %% (%(assets)s - 50) end,
    lateral (select %(begin)s::timestamptz + n * interval '20 seconds' as moment) as moments,
    lateral (values (0, 'Submitted'), (1, 'Active'),
      (2, case when n %% 100 = 7 then 'Failed' else 'Complete' end)) as steps (step, phase)
"""
_BARE = (
    "select * from dispatch where namespace = 'site' and first_at < %s "
    "order by first_at desc, dispatch_uid desc limit %s"
)


def measure() -> Iterator[Result]:
    """P18: a page of history; P19: rows for what was there before; P20: what a row costs a step."""
    with PostgresServer() as server:
        url = server.create_database("bench")
        database = WriterDatabase.connect(url, "bench")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                "insert into asset (namespace, name, uid) select case when n <= 50 then 'tenant' "
                "else 'site' end, 'a' || n, 'u' || n from generate_series(1, %s) as n",
                (ASSETS,),
            )
            yield from _measure_steps(connection, database)
            yield _measure_filling(connection)
            connection.execute("vacuum analyze dispatch")
            yield from _measure_pages(connection)
        database.close()


def _measure_steps(connection: psycopg.Connection, database: WriterDatabase) -> Iterator[Result]:
    """P20: dispatches stored a second, five steps each; limit = the same without their rows."""
    rates: dict[str, list[float]] = {"enable": [], "disable": []}
    offset = 0
    for turn in ("enable", "disable") * 4:
        connection.execute(f"alter table dispatch_event {turn} trigger user".encode())
        told = [_life_of_one(n) for n in range(_ROUNDS * _OF_ONE_ROUND)]
        begun = time.perf_counter()
        for first in range(0, len(told), _OF_ONE_ROUND):
            entries = [entry for life in told[first : first + _OF_ONE_ROUND] for entry in life]
            sources = [LogSource(offset + 1, index, entry) for index, entry in enumerate(entries)]
            database.store(sources, after=offset, through=offset + 1)
            offset += 1
        rates[turn].append(len(told) / (time.perf_counter() - begun))
    connection.execute("alter table dispatch_event enable trigger user")
    with_rows, without = (statistics.median(rates[turn]) for turn in rates)
    yield Result(
        name="P20_dispatches_stored", value=with_rows, unit="1/s", limit=without, goal=">= 0.3"
    )


def _life_of_one(number: int) -> list[log_pb2.LogEntry]:
    uid, now_us = str(uuid.uuid4()), time.time_ns() // 1000
    number = 51 + number % (ASSETS - 50)
    asset = dispatch_pb2.AssetId(namespace="site", name=f"a{number}", uid=f"u{number}")

    def step(phase: str) -> dispatch_pb2.Transition:
        return dispatch_pb2.Transition(phase=phase, reason=f"{phase}Reason", at_us=now_us)

    told = [
        control_pb2.HeadendTransition(
            asset=asset, dispatch_uid=uid, dispatch_name=f"n{number}", transition=step(phase)
        ).SerializeToString()
        for phase in ("Submitted", "Sent")
    ]
    report = dispatch_pb2.DispatchReport(
        sequence=3, ledger_id="ledger", dispatch_uid=uid, phase="Complete", applied_us=now_us,
        transitions=[step(phase) for phase in ("Acked", "Active", "Complete")],
    )  # fmt: skip
    bodies = [
        *((log_pb2.HEADEND_TRANSITION, body) for body in told),
        (log_pb2.AGENT_REPORT, report.SerializeToString()),
    ]
    return [
        log_pb2.LogEntry(kind=kind, asset=asset, received_us=now_us, body=body)
        for kind, body in bodies
    ]


def _measure_filling(connection: psycopg.Connection) -> Result:
    """P19: dispatches a second; limit = to copy the rows into a table with the same indexes."""
    connection.execute("truncate dispatch_event")
    connection.execute("alter table dispatch_event disable trigger user")
    connection.execute(
        _STEPS.encode(), {"dispatches": DISPATCHES, "assets": ASSETS, "begin": BEGIN}
    )
    connection.execute("alter table dispatch_event enable trigger user")
    connection.execute("analyze dispatch_event")
    connection.execute("update dispatch_backfill set done_at = null")
    begun = time.perf_counter()
    while fill(connection) is not None:
        pass
    filled = time.perf_counter() - begun
    connection.execute("create table bare (like dispatch including all)")
    begun = time.perf_counter()
    connection.execute("insert into bare select * from dispatch")
    copied = time.perf_counter() - begun
    connection.execute("drop table bare")
    return Result(
        name="P19_dispatches_filled",
        value=DISPATCHES / filled,
        unit="1/s",
        limit=DISPATCHES / copied,
        goal=">= 0.1",
    )


def _measure_pages(connection: psycopg.Connection) -> Iterator[Result]:
    chance = random.Random(20261130)

    def since() -> datetime:
        return BEGIN + timedelta(seconds=20 * chance.randrange(DISPATCHES // 10, DISPATCHES))

    bare = _times(
        lambda: connection.execute(_BARE, (since(), PAGE), binary=True).fetchall(), _LOOKS
    )
    pages: dict[str, Callable[[], DispatchFilter]] = {
        "page": lambda: DispatchFilter(namespace="site", until=since()),
        "of_asset": lambda: DispatchFilter(
            namespace="site", asset_name=f"a{chance.randrange(51, ASSETS)}", until=since()
        ),
        "failed": lambda: DispatchFilter(namespace="site", phase="Failed", until=since()),
        "of_creator": lambda: DispatchFilter(namespace="tenant", created_by="ann", until=since()),
        "of_name": lambda: DispatchFilter(
            namespace="site", dispatch=f"evening-{chance.randrange(5000)}"
        ),
    }
    before = _processor_seconds(connection)
    for name, wanted in pages.items():
        times = _times(partial(_look, connection, wanted, PAGE), _LOOKS)
        yield Result(name=f"P18_history_{name}_p99", value=times[1], unit="ms", limit=50)
        if name == "page":
            seconds = _processor_seconds(connection) - before
            yield Result(
                name="P18_history_page_processor",
                value=1000 * seconds / _LOOKS,
                unit="ms",
                limit=50,
            )
            yield Result(
                name="P18_history_page_p50", value=times[0], unit="ms", limit=bare[0], goal="<= 3"
            )
    before = _processor_seconds(connection)
    large = _times(partial(_look, connection, pages["page"], LARGEST_PAGE), _LOOKS)
    seconds = _processor_seconds(connection) - before
    yield Result(
        name="P18_history_500_processor", value=1000 * seconds / _LOOKS, unit="ms", limit=50
    )
    yield Result(name="P18_history_500_p99", value=large[1], unit="ms", limit=50)
    following: DispatchPosition | None = find(
        connection, DispatchFilter(namespace="site"), limit=PAGE
    )[-1].place

    def turn() -> None:
        nonlocal following
        found = find(connection, DispatchFilter(namespace="site"), after=following, limit=PAGE)
        following = found[-1].place if found else None

    yield Result(name="P18_history_next_p99", value=_times(turn, _LOOKS)[1], unit="ms", limit=50)
    month = DispatchFilter(namespace="site", since=BEGIN, until=BEGIN + timedelta(days=30))
    summary = _times(lambda: sum_up(connection, month), 20)
    yield Result(name="P18_history_summary_of_a_month", value=summary[0], unit="ms", limit=1000)


def _look(connection: psycopg.Connection, wanted: Callable[[], DispatchFilter], limit: int) -> None:
    find(connection, wanted(), limit=limit)


def _processor_seconds(connection: psycopg.Connection) -> float:
    """Return what this process and the server's for this connection took so far."""
    return time.process_time() + limits.cpu_seconds(connection.info.backend_pid)


def _times(look: Callable[[], object], count: int) -> tuple[float, float]:
    """Return median and 99th percentile in ms."""
    found = []
    for _ in range(count):
        begun = time.perf_counter()
        look()
        found.append(1000 * (time.perf_counter() - begun))
    found.sort()
    return found[count // 2], found[int(count * 0.99)]
