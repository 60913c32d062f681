"""The outbox: durable before it is sent, in order, bounded, and honest about what it dropped."""

import asyncio
from pathlib import Path

import pytest
from tests.agent.fakes import FakeListener
from tests.counters import value_of

from derops.ids import AssetName
from derops.observability import Readiness
from derops.wire.v1 import agent_pb2
from derops_agent import metrics
from derops_agent.ports import Reading
from derops_agent.storage import Threads
from derops_agent.telemetry.flusher import Flusher
from derops_agent.telemetry.outbox import MAX_WAITING, Outbox, split
from derops_agent.telemetry.outbox_store import OutboxStore

POWER, SOC = int(agent_pb2.ACTIVE_POWER_WATTS), int(agent_pb2.STATE_OF_CHARGE_PERCENT)
NAME = AssetName("ns", "battery")


def fill(store: OutboxStore, outbox: Outbox, batches: int, *, first: int = 0) -> None:
    for number in range(first, first + batches):
        outbox.add(Reading(at_us=number, values={POWER: float(number)}))
        store.flush()


def messages(outbox: Outbox, after: int = 0) -> list[agent_pb2.AgentMessage]:
    return [agent_pb2.AgentMessage.FromString(wire) for _, wire in outbox.read(after, 2**60, 1000)]


def test_nothing_is_there_to_send_before_it_is_durable(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())
    outbox.add(Reading(at_us=1, values={POWER: 5.0}))
    assert outbox.stored_sequence == 0
    assert outbox.read(0, 10) == []
    store.flush()

    assert outbox.stored_sequence == 1
    assert outbox.recent(0, 10) == outbox.read(0, 10)
    store.close()


def test_a_batch_has_columns_and_says_what_was_not_measured(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())
    outbox.add(Reading(at_us=1000, values={POWER: 5.0}))
    outbox.add(Reading(at_us=1500, values={POWER: 6.0, SOC: 50.0}))
    store.flush()

    batch = messages(outbox)[0].telemetry
    assert (batch.t0_us, list(batch.dt_us), batch.sequence) == (1000, [0, 500], 1)
    assert [column.quantity for column in batch.columns] == [POWER, SOC]
    assert list(batch.columns[0].values) == [5.0, 6.0]
    assert str(list(batch.columns[1].values)) == "[nan, 50.0]"
    store.close()


def test_acknowledged_batches_go_and_sequences_are_never_used_again(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())
    fill(store, outbox, 3)
    outbox.acknowledge(3)
    store.flush()
    assert messages(outbox) == []
    store.close()

    again = OutboxStore(tmp_path / "outbox.db")
    reopened = again.open(NAME, FakeListener())
    fill(again, reopened, 1)
    assert [m.telemetry.sequence for m in messages(reopened)] == [4]
    assert reopened.outbox_id == outbox.outbox_id
    again.close()


def test_unacknowledged_batches_survive_and_a_repeated_commit_is_harmless(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())
    outbox.add(Reading(at_us=1, values={POWER: 5.0}))
    work = store.collect()
    store.commit(work)
    store.commit(work)
    store.close()

    again = OutboxStore(tmp_path / "outbox.db")
    assert len(messages(again.open(NAME, FakeListener()))) == 1
    again.close()


def test_a_full_outbox_drops_the_oldest_and_a_gap_stands_for_all_of_them(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db", max_bytes=2000)
    outbox = store.open(NAME, FakeListener())
    fill(store, outbox, 100)

    gap, *batches = messages(outbox)
    assert sum(len(wire) for _, wire in outbox.read(0, 2**60, 1000)) <= 2000
    assert len(batches) > 10
    assert gap.gap.reason == "OutboxFull"
    assert (gap.gap.from_us, gap.gap.samples) == (0, gap.gap.sequence)
    sequences = [gap.gap.sequence, *[m.telemetry.sequence for m in batches]]
    assert sequences == list(range(sequences[0], 101))
    assert gap.gap.to_us == batches[0].telemetry.t0_us - 1
    assert outbox.first_sequence == gap.gap.sequence
    store.close()


def test_what_is_too_old_is_dropped_once_the_clock_is_confirmed(tmp_path: Path) -> None:
    clock: list[int | None] = [None]
    store = OutboxStore(tmp_path / "outbox.db", max_age_seconds=60, now_us=lambda: clock[0])
    outbox = store.open(NAME, FakeListener())
    fill(store, outbox, 10)
    store.flush()
    assert len(messages(outbox)) == 10

    clock[0] = 60_000_005
    store.flush()

    gap, *batches = messages(outbox)
    assert (gap.gap.reason, gap.gap.samples, gap.gap.to_us) == ("OutboxTooOld", 5, 4)
    assert [batch.telemetry.t0_us for batch in batches] == [5, 6, 7, 8, 9]
    store.close()


def test_a_gap_that_is_old_takes_no_fresh_sample_with_it_and_is_counted_once(
    tmp_path: Path,
) -> None:
    clock: list[int | None] = [None]
    store = OutboxStore(tmp_path / "outbox.db", max_age_seconds=60, now_us=lambda: clock[0])
    outbox = store.open(NAME, FakeListener())
    fill(store, outbox, 5)
    counted = metrics.SAMPLES_DROPPED.labels("OutboxTooOld")
    before = value_of(counted)

    clock[0] = 200_000_000
    store.flush()
    store.flush()
    fill(store, outbox, 1, first=200_000_000)
    store.flush()

    gap, *batches = messages(outbox)
    assert (gap.gap.samples, gap.gap.to_us) == (5, 4)
    assert [batch.telemetry.t0_us for batch in batches] == [200_000_000]

    clock[0] = 300_000_000
    store.flush()
    assert [m.gap.samples for m in messages(outbox)] == [6]
    assert value_of(counted) == before + 6
    store.close()


def test_the_bound_is_on_what_the_file_takes(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db", max_bytes=200_000)
    outbox = store.open(NAME, FakeListener())
    for number in range(1_800):
        outbox.add(Reading(at_us=number, values=dict.fromkeys(range(1, 9), float(number))))
        store.flush()
    store.close()

    assert 170_000 < (tmp_path / "outbox.db").stat().st_size < 215_000


def test_while_the_disk_takes_nothing_the_newest_wait_and_a_gap_stands_for_the_others(
    tmp_path: Path,
) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())
    for number in range(MAX_WAITING + 50):
        outbox.add(Reading(at_us=number, values={POWER: 1.0}))
    store.flush()

    gap, *batches = messages(outbox)
    assert (gap.gap.reason, gap.gap.samples) == ("DiskFailed", 50)
    assert (gap.gap.from_us, gap.gap.to_us, gap.gap.sequence) == (0, 49, 1)
    assert batches[0].telemetry.t0_us == 50
    assert sum(len(batch.telemetry.dt_us) for batch in batches) == MAX_WAITING
    store.close()


@pytest.mark.parametrize("content", [b"this is not a database at all" * 100, b"SQLite format 3"])
def test_a_damaged_file_is_put_aside_at_the_start(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "outbox.db").write_bytes(content)
    store = OutboxStore(tmp_path / "outbox.db")
    fill(store, store.open(NAME, FakeListener()), 1)

    (aside,) = tmp_path.glob("outbox.db.damaged-*")
    assert aside.read_bytes() == content
    store.close()


async def test_a_file_that_is_damaged_meanwhile_is_replaced_under_a_new_id(tmp_path: Path) -> None:
    store, threads = OutboxStore(tmp_path / "outbox.db"), Threads()
    flusher = Flusher(store, threads, Readiness())
    listener = FakeListener()
    outbox = store.open(NAME, listener)
    old_id = outbox.outbox_id
    fill(store, outbox, 200)
    store._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    store._db.execute("PRAGMA cache_size = 1")
    file = tmp_path / "outbox.db"
    with file.open("r+b") as pages:
        pages.seek(4096)
        pages.write(b"\xff" * (file.stat().st_size - 4096))
    running = asyncio.create_task(flusher.run())
    outbox.add(Reading(at_us=1, values={POWER: 1.0}))
    store.wake()
    async with asyncio.timeout(10):
        while not listener.replaced:
            await asyncio.sleep(0)
    outbox.add(Reading(at_us=2, values={POWER: 2.0}))
    await flusher.flush()
    running.cancel()

    assert outbox.outbox_id != old_id
    assert messages(outbox)[-1].telemetry.outbox_id == outbox.outbox_id
    assert [m.telemetry.sequence for m in messages(outbox)] == [1]
    threads.close()
    store.close()


async def test_a_disk_that_takes_nothing_is_said_until_it_does(tmp_path: Path) -> None:
    store, threads, readiness = OutboxStore(tmp_path / "outbox.db"), Threads(), Readiness()
    outbox = store.open(NAME, FakeListener())
    running = asyncio.create_task(Flusher(store, threads, readiness).run())
    store._db.execute("PRAGMA query_only = 1")  # as a full disk refuses
    outbox.add(Reading(at_us=1, values={POWER: 1.0}))
    store.wake()
    async with asyncio.timeout(10):
        while "degraded outbox: attempt to write" not in readiness.report()[1]:
            await asyncio.sleep(0)
        assert readiness.report()[0], "dispatches go on"
        store._db.execute("PRAGMA query_only = 0")
        store.wake()
        while readiness.report()[1] != "ok":
            await asyncio.sleep(0)
    running.cancel()

    assert [m.telemetry.columns[0].values[0] for m in messages(outbox)] == [1.0]
    threads.close()
    store.close()


def test_no_batch_is_beyond_the_cap_of_the_protocol() -> None:
    wide = [
        Reading(at_us=n, values={1 + (n + shift) % 90: 1e300 for shift in range(80)})
        for n in range(300)
    ]

    batches = list(split(wide))

    assert [reading for batch in batches for reading in batch] == wide
    assert all(len({k for r in b for k in r.values}) * len(b) * 8 < 60_000 for b in batches)


def test_more_than_a_hundred_samples_are_several_batches(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())
    for number in range(150):
        outbox.add(Reading(at_us=number, values={POWER: 0.0}))
    store.flush()

    assert store.awaits_flush.is_set()
    assert [len(m.telemetry.dt_us) for m in messages(outbox)] == [100, 50]
    store.close()


def test_assets_share_the_file_and_nothing_else(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    one, other = (
        store.open(NAME, FakeListener()),
        store.open(AssetName("ns", "other"), FakeListener()),
    )
    fill(store, one, 2)
    fill(store, other, 1)

    assert one.outbox_id != other.outbox_id
    assert (len(messages(one)), len(messages(other))) == (2, 1)
    store.close()
