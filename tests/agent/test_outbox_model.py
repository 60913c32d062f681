"""The outbox against a simple model: crashes, acknowledgements and the bounds in any order."""

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from tests.agent.fakes import FakeListener

from derops.ids import AssetName
from derops.wire.v1 import agent_pb2
from derops_agent.ports import Reading
from derops_agent.telemetry.outbox_store import OutboxStore

POWER = int(agent_pb2.ACTIVE_POWER_WATTS)
MAX_BYTES = 3000
MAX_AGE = 60
SECOND_US = 1_000_000


class OutboxMachine(RuleBasedStateMachine):
    """Samples are a second apart; the model knows which were stored and acknowledged."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self.taken = 0
        self.waiting: list[int] = []
        self.stored: list[int] = []
        self.acknowledged = 0
        self.last = 0
        self.now: int | None = None
        """Seconds; None = nobody has confirmed the clock."""
        self.oldest = 0
        """What is younger was not too old at the last flush."""
        self._open()

    def _open(self) -> None:
        path = Path(self._folder.name) / "outbox.db"
        self.store = OutboxStore(
            path,
            max_bytes=MAX_BYTES,
            max_age_seconds=MAX_AGE,
            now_us=lambda: None if self.now is None else self.now * SECOND_US,
        )
        self.outbox = self.store.open(AssetName("ns", "battery"), FakeListener())

    @rule(count=st.integers(1, 30))
    def sample(self, count: int) -> None:
        for _ in range(count):
            self.taken += 1
            self.waiting.append(self.taken)
            reading = Reading(at_us=self.taken * SECOND_US, values={POWER: float(self.taken)})
            self.outbox.add(reading)
        if self.now is not None:
            self.now += count

    @rule(seconds=st.integers(0, 2 * MAX_AGE))
    def time_passes_without_samples(self, seconds: int) -> None:
        self.taken += seconds
        self.now = self.taken

    @rule()
    def flush(self) -> None:
        self.store.flush()
        self._note_stored()

    def _note_stored(self) -> None:
        self.stored += self.waiting
        self.waiting = []
        if self.now is not None:
            self.oldest = self.now - MAX_AGE

    @rule()
    def crash(self) -> None:
        self.store.close()
        self.waiting = []
        self.acknowledged = 0  # what was not flushed is acknowledged again
        self._open()

    @rule()
    def crash_before_the_commit_is_told(self) -> None:
        self.store.commit(self.store.collect())
        self._note_stored()
        self.crash()

    @rule(share=st.floats(0, 1))
    def acknowledge(self, share: float) -> None:
        rows = self.outbox.read(0, 2**60, 10_000)
        if rows:
            through = rows[round(share * (len(rows) - 1))][0]
            self.outbox.acknowledge(through)
            self.acknowledged = max(self.acknowledged, through)

    @invariant()
    def what_is_there_follows_without_a_hole(self) -> None:
        kept = [
            agent_pb2.AgentMessage.FromString(wire)
            for _, wire in self.outbox.read(0, 2**60, 10_000)
        ]
        sequences = [(m.gap if m.HasField("gap") else m.telemetry).sequence for m in kept]
        assert sequences == list(range(sequences[0], sequences[0] + len(kept))) if kept else True
        assert all(not m.HasField("gap") for m in kept[1:])
        assert sequences[-1:] <= [self.outbox.stored_sequence]
        assert self.outbox.last_sequence >= self.last, "a sequence was given out twice"
        self.last = self.outbox.last_sequence
        assert self.outbox.first_sequence <= (sequences[0] if kept else self.last + 1) or (
            self.outbox.first_sequence == self.acknowledged + 1
        )
        self._check_samples(kept)

    @invariant()
    def what_is_told_to_wait_is_there(self) -> None:
        """After a commit exactly what is there waits, of which the oldest is named."""
        facts = self.outbox.facts(0)
        if self.waiting:
            return
        if self.acknowledged >= self.outbox.stored_sequence:
            assert (facts.waiting_samples, facts.oldest_waiting_us) == (0, 0)
            return
        kept = [
            agent_pb2.AgentMessage.FromString(wire).telemetry
            for _, wire in self.outbox.read(0, 2**60, 10_000)
        ]
        times = [batch.t0_us + dt for batch in kept for dt in batch.dt_us]
        assert facts.waiting_samples == len(times)
        assert facts.oldest_waiting_us == min(times, default=0)

    def _check_samples(self, kept: list[agent_pb2.AgentMessage]) -> None:
        """What is there are the newest that were stored; a gap counts what was dropped."""
        batches = [m.telemetry for m in kept if m.HasField("telemetry")]
        times = [(batch.t0_us + dt) // SECOND_US for batch in batches for dt in batch.dt_us]
        assert all(max(b.dt_us) + b.t0_us >= self.oldest * SECOND_US for b in batches)
        assert times == self.stored[len(self.stored) - len(times) :]
        for gap in (m.gap for m in kept if m.HasField("gap")):
            older = self.stored[: len(self.stored) - len(times)]
            first, last = gap.from_us // SECOND_US, gap.to_us // SECOND_US
            assert last == older[-1]
            assert [t for t in older if first <= t <= last][-gap.samples :] == (
                older[len(older) - gap.samples :]
            )
            assert gap.reason == "OutboxFull" or last < self.oldest
        size = sum(len(wire) for _, wire in self.outbox.read(0, 2**60, 10_000))
        assert size <= MAX_BYTES or len(kept) <= 2

    def teardown(self) -> None:
        self.store.close()
        self._folder.cleanup()


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
