"""A short run of most faults; ``make faults`` is the long one, of all."""

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tests.faults.faults import KINDS, NOTHING, Kind, Setting, plan
from tests.faults.ground import SMALL_LOG, Ground, filled, small_disk
from tests.faults.running import Outcome, Report, run
from tests.field.headend import FieldHeadend
from tests.stack.nats import NatsServer
from tests.stack.postgres import PostgresServer

pytestmark = pytest.mark.timeout(400)  # they start some twenty processes one after the other

LONG_SET_ONLY = (
    "gateway killed",
    "gateway stopped and continued",
    "writer killed",
    "writer stopped and continued",
    "database away",
    "log full, gateway killed",
    "disk full",
    "disk error",
    "disk error, gateway killed",
)
"""Of each there is a harder one in the short set, but for those that need strace."""

SHORT_SET = [kind for kind in KINDS if kind.name not in LONG_SET_ONLY]
OF_ANY, OF_NATS = (
    [kind for kind in SHORT_SET if kind.setting is setting]
    for setting in (Setting.ANY, Setting.NATS)
)
OF_ROOM = [k for k in SHORT_SET if k.setting in (Setting.SMALL_LOG, Setting.SMALL_DISK)]
LONGEST_SECONDS = 0.7


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that may be killed: the session's own is for others too."""
    with PostgresServer() as running:
        yield running


def kept(report: Report, kinds: Sequence[Kind], rounds: int = 1) -> bool:
    """Tell whether all promises were kept, and all the honest sent was taken as it should be."""
    short = report.shortfalls(kinds, rounds)
    print("\n".join([*report.lines(""), *short]))
    return not report.violations and not report.quarantined and not short


async def test_nothing_acknowledged_is_lost_and_nothing_is_stored_twice(
    tmp_path: Path, server: PostgresServer
) -> None:
    ground = Ground(directory=tmp_path, server=server, senders=20, agents=3)

    report = await run(ground, OF_ANY, rounds=1, seed=20260101, longest_seconds=LONGEST_SECONDS)

    assert kept(report, OF_ANY)
    assert report.gaps > 0


async def test_the_same_holds_with_the_log_in_jetstream(
    tmp_path: Path, server: PostgresServer
) -> None:
    with NatsServer() as nats:
        ground = Ground(directory=tmp_path, server=server, senders=20, nats=nats)
        report = await run(
            ground, OF_NATS, rounds=2, seed=20260102, longest_seconds=LONGEST_SECONDS
        )

    assert kept(report, OF_NATS, 2)


async def test_a_full_log_and_a_full_disk_are_got_over(
    tmp_path: Path, server: PostgresServer
) -> None:
    with small_disk(tmp_path) as disk:
        ground = Ground(
            directory=tmp_path, server=server, senders=20, disk=disk, environment=SMALL_LOG
        )
        report = await run(
            ground, OF_ROOM, rounds=1, seed=20260103, longest_seconds=LONGEST_SECONDS
        )

    assert kept(report, OF_ROOM)


def test_a_run_that_did_too_little_is_told() -> None:
    kinds = [kind for kind in KINDS if kind.name in {"gateway killed", "writer killed"}]
    done = Outcome(rounds=3, batches_sent=9, batches_acknowledged=9)
    report = Report(7, {NOTHING: done, "gateway killed": done, "writer killed": done}, rows=5)
    assert report.shortfalls(kinds, 3) == []

    report = Report(7, {"gateway killed": done, "writer killed": Outcome(rounds=2)})
    assert report.shortfalls(kinds, 3) == [
        "nothing: 0 rounds, fewer than 1",
        "nothing: no batch was acknowledged",
        "writer killed: 2 rounds, fewer than 3",
        "writer killed: no batch was acknowledged",
        "nothing was stored",
    ]
    assert "no fault was chosen" in report.shortfalls([], 3)


def test_a_gateway_that_starts_on_a_full_disk_says_so_and_goes_on_once_there_is_room(
    tmp_path: Path, server: PostgresServer
) -> None:
    url = server.create_database("full_disk")
    with small_disk(tmp_path) as disk:
        headend = FieldHeadend(tmp_path, assets=1, database_url=url, data_directory=disk)
        with filled(disk), headend:
            assert headend.metrics("gateway")["derops_gateway_log_failing"] == 1
            assert "disk is full; free space on it" in headend.readiness("gateway")

            (disk / "filler").unlink()

            asyncio.run(headend.give_desired_state())
            headend.wait_ready("gateway")
            assert headend.metrics("gateway")["derops_gateway_log_failing"] == 0


def test_a_seed_gives_the_same_plan_again() -> None:
    assert plan(KINDS, 3, 7) == plan(KINDS, 3, 7)
    assert plan(KINDS, 3, 7) != plan(KINDS, 3, 8)
