"""Where an agent says that its telemetry stands: on a real file, full, damaged or begun anew."""

import asyncio
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from tests.agent.fakes import FakeListener

from derops.devices import bounded_telemetry
from derops.ids import AssetName
from derops.observability import Readiness
from derops.wire.v1 import agent_pb2
from derops_agent.ports import Reading
from derops_agent.storage import Threads
from derops_agent.telemetry.flusher import Flusher
from derops_agent.telemetry.outbox import MAX_WAITING, Outbox
from derops_agent.telemetry.outbox_store import OutboxStore

POWER = int(agent_pb2.ACTIVE_POWER_WATTS)
NAME = AssetName("ns", "battery")
S = 1_000_000


def sample(outbox: Outbox, second: int) -> None:
    outbox.add(Reading(at_us=second * S, values={POWER: 1.0}))


def fill(store: OutboxStore, outbox: Outbox, seconds: range) -> None:
    """Take a sample each second; each is a batch on the disk."""
    for second in seconds:
        sample(outbox, second)
        store.flush()


def told(outbox: Outbox) -> tuple[int, int, int]:
    """Return when the newest was taken, how many wait, and when the oldest of those was taken."""
    facts = outbox.facts(0)
    return facts.sampled_us // S, facts.waiting_samples, facts.oldest_waiting_us // S


def test_before_the_first_sample_nothing_is_known_and_nothing_waits(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")

    assert store.open(NAME, FakeListener()).facts(9) == agent_pb2.TelemetryFacts()
    store.close()


def test_a_reading_without_a_value_is_no_sample(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())

    outbox.add(Reading(at_us=7 * S, values={}))

    assert told(outbox) == (0, 0, 0)
    store.close()


def test_a_sample_waits_from_when_it_is_taken_until_it_is_acknowledged(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())

    sample(outbox, 10)
    sample(outbox, 11)
    assert told(outbox) == (11, 2, 10), "in memory"
    work = store.collect()
    sample(outbox, 12)
    assert told(outbox) == (12, 3, 10), "on its way to the disk"
    store.finish(work, store.commit(work))
    assert told(outbox) == (12, 3, 10), "on the disk"
    store.flush()
    outbox.acknowledge(1)
    store.flush()
    assert told(outbox) == (12, 1, 12)
    outbox.acknowledge(2)
    assert told(outbox) == (12, 0, 0), "known before the disk has deleted it"
    store.close()


def test_a_backlog_is_known_after_a_restart(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    fill(store, store.open(NAME, FakeListener()), range(10, 40))
    store.open(NAME, FakeListener())
    store.close()

    again = OutboxStore(tmp_path / "outbox.db")
    outbox = again.open(NAME, FakeListener())

    assert told(outbox) == (0, 30, 10), "none was taken since"
    fill(again, outbox, range(50, 51))
    assert told(outbox) == (50, 31, 10)
    again.close()


def test_what_a_gap_stands_for_waits_no_more_also_after_a_restart(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db", max_bytes=2000)
    outbox = store.open(NAME, FakeListener())
    fill(store, outbox, range(100, 200))
    (_, gap), *batches = outbox.read(0, 2**60, 1000)
    assert agent_pb2.AgentMessage.FromString(gap).HasField("gap")
    assert told(outbox) == (199, len(batches), 200 - len(batches))
    store.close()

    again = OutboxStore(tmp_path / "outbox.db", max_bytes=2000)
    assert told(again.open(NAME, FakeListener()))[1:] == (len(batches), 200 - len(batches))
    again.close()


def test_samples_without_a_place_in_memory_wait_no_more_on_either_side(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())
    for second in range(1, MAX_WAITING + 51):
        sample(outbox, second)
    waiting = (MAX_WAITING + 50, MAX_WAITING, 51)
    assert told(outbox) == waiting
    store.flush()
    assert told(outbox) == waiting
    store.close()

    again = OutboxStore(tmp_path / "outbox.db")
    assert told(again.open(NAME, FakeListener()))[1:] == waiting[1:]
    again.close()


def test_of_a_file_that_was_replaced_nothing_waits(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())
    fill(store, outbox, range(10, 20))
    sample(outbox, 25)
    store.collect()

    store.begin_anew(store.replace(OSError("damaged")))  # type: ignore[arg-type]

    assert told(outbox) == (25, 0, 0), "what was on its way went with the file"
    fill(store, outbox, range(30, 31))
    assert told(outbox) == (30, 1, 30)
    store.close()


def test_assets_of_one_file_have_facts_of_their_own(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    one = store.open(NAME, FakeListener())
    other = store.open(AssetName("ns", "other"), FakeListener())
    fill(store, one, range(5, 8))
    fill(store, other, range(20, 21))

    assert (told(one), told(other)) == ((7, 3, 5), (20, 1, 20))
    store.close()


async def test_a_disk_that_takes_nothing_is_told_with_its_words_and_since_when(
    tmp_path: Path,
) -> None:
    store, threads, readiness = OutboxStore(tmp_path / "outbox.db"), Threads(), Readiness()
    outbox = store.open(NAME, FakeListener())
    sample(outbox, 1)
    await Flusher(store, threads, readiness).flush()
    running = asyncio.create_task(Flusher(store, threads, readiness).run())
    store._db.execute("PRAGMA query_only = 1")  # as a full disk refuses
    outbox.acknowledge(1)
    sample(outbox, 2)
    store.wake()
    async with asyncio.timeout(10):
        while not outbox.facts(1000 * S).problem:
            await asyncio.sleep(0)
        facts = outbox.facts(1000 * S)
        assert facts.problem == "attempt to write a readonly database"
        assert 990 * S < facts.problem_since_us <= 1000 * S
        assert told(outbox) == (2, 1, 2), "what was acknowledged waits no more"
        # The clock is set: it began as long ago as before.
        later = outbox.facts(5000 * S)
        assert abs(later.problem_since_us - facts.problem_since_us - 4000 * S) < 10 * S
        store._db.execute("PRAGMA query_only = 0")
        store.wake()
        while outbox.facts(0).problem:
            await asyncio.sleep(0)
    assert outbox.facts(0).problem_since_us == 0
    running.cancel()
    threads.close()
    store.close()


def test_a_flush_costs_no_statement_more_while_all_is_acknowledged(tmp_path: Path) -> None:
    """In the usual course, a batch a second that is acknowledged at once: one row is looked up."""
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME, FakeListener())
    said: list[str] = []
    for second in range(1, 20):
        sample(outbox, second)
        store.flush()
        outbox.acknowledge(outbox.stored_sequence)
        store.flush()
        store._db.set_trace_callback(said.append)

    looked_up = [each for each in said if each.startswith("SELECT")]
    assert len(looked_up) == 18
    assert all(each.endswith("ORDER BY sequence LIMIT 1") for each in looked_up)
    store.close()


@given(st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1), st.text(max_size=2000))
def test_whatever_is_told_is_bounded_and_printable(at_us: int, count: int, text: str) -> None:
    facts = bounded_telemetry(
        agent_pb2.TelemetryFacts(
            sampled_us=at_us,
            waiting_samples=count,
            oldest_waiting_us=at_us,
            problem=text,
            problem_since_us=at_us,
        )
    )

    assert facts.ByteSize() < 400
    assert facts.problem.isprintable()
    assert 0 <= facts.sampled_us <= 4_102_444_800_000_000
    assert bounded_telemetry(facts) == facts
