"""The outbox: durable before it is sent, in order, bounded, and honest about what it dropped."""

from pathlib import Path

from derops.ids import AssetName
from derops.wire.v1 import agent_pb2
from derops_agent.outbox import Outbox, OutboxStore
from derops_agent.ports import Reading

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
    outbox = store.open(NAME)
    outbox.add(Reading(at_us=1, values={POWER: 5.0}))
    assert outbox.stored_sequence == 0
    assert outbox.read(0, 10) == []
    store.flush()

    assert outbox.stored_sequence == 1
    assert outbox.recent(0, 10) == outbox.read(0, 10)
    store.close()


def test_a_batch_has_columns_and_says_what_was_not_measured(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME)
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
    outbox = store.open(NAME)
    fill(store, outbox, 3)
    outbox.acknowledge(3)
    store.flush()
    assert messages(outbox) == []
    store.close()

    again = OutboxStore(tmp_path / "outbox.db")
    reopened = again.open(NAME)
    fill(again, reopened, 1)
    assert [m.telemetry.sequence for m in messages(reopened)] == [4]
    assert reopened.outbox_id == outbox.outbox_id
    again.close()


def test_unacknowledged_batches_survive_and_a_repeated_commit_is_harmless(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME)
    outbox.add(Reading(at_us=1, values={POWER: 5.0}))
    work = store.collect()
    store.commit(work)
    store.commit(work)
    store.close()

    again = OutboxStore(tmp_path / "outbox.db")
    assert len(messages(again.open(NAME))) == 1
    again.close()


def test_a_full_outbox_drops_the_oldest_and_a_gap_stands_for_all_of_them(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db", max_batches=20)
    outbox = store.open(NAME)
    fill(store, outbox, 100)

    gap, *batches = messages(outbox)
    assert len(batches) < 20
    assert gap.gap.reason == "OutboxFull"
    assert (gap.gap.from_us, gap.gap.samples) == (0, gap.gap.sequence)
    sequences = [gap.gap.sequence, *[m.telemetry.sequence for m in batches]]
    assert sequences == list(range(sequences[0], 101))
    assert gap.gap.to_us == batches[0].telemetry.t0_us - 1
    store.close()


def test_more_than_a_hundred_samples_are_several_batches(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    outbox = store.open(NAME)
    woken: list[bool] = []
    store.wake = lambda: woken.append(True)
    for number in range(150):
        outbox.add(Reading(at_us=number, values={POWER: 0.0}))
    store.flush()

    assert woken
    assert [len(m.telemetry.dt_us) for m in messages(outbox)] == [100, 50]
    store.close()


def test_assets_share_the_file_and_nothing_else(tmp_path: Path) -> None:
    store = OutboxStore(tmp_path / "outbox.db")
    one, other = store.open(NAME), store.open(AssetName("ns", "other"))
    fill(store, one, 2)
    fill(store, other, 1)

    assert one.outbox_id != other.outbox_id
    assert (len(messages(one)), len(messages(other))) == (2, 1)
    store.close()
