"""Telemetry of one stream: checks of a batch, the order of the outbox, and credit. Pure.

The agent says in Hello where its outbox begins; from there on sequences have no holes, what was
promised is never taken back, and what is acknowledged is durable.
"""

from dataclasses import dataclass
from enum import Enum, auto

from derops.wire.v1 import agent_pb2

MAX_SAMPLES = 1000
MAX_COLUMNS = 64
MAX_BATCH_BYTES = 65536
MAX_COLUMN_NAME = 64
CREDIT_BATCHES = 16
"""Batches that may be on their way while the log has room."""

SHRINK_FROM = 0.80
"""Share of the log's bound above which credit shrinks."""

REFUSE_FROM = 0.95
"""Share from which on telemetry gets no credit: the rest is for reports and the headend's entries.
"""

MAX_SEQUENCE = 2**62
"""Fits the signed 64 bit of an agent's database."""

MAX_TIME_US = 4_102_444_800_000_000
"""The year 2100: samples of a device clock that is further off are not worth recording."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """Which rule a message breaks."""

    reason: str
    message: str


class BatchVerdict(Enum):
    """What to do with a message of the outbox."""

    STORE = auto()
    DUPLICATE = auto()
    BEYOND_CREDIT = auto()


def check_batch(batch: agent_pb2.TelemetryBatch) -> Violation | None:
    """Check shape and times of a batch; values may be anything, NaN is absent."""
    samples = len(batch.dt_us)
    if not 1 <= samples <= MAX_SAMPLES:
        return _bad(f"{samples} samples; 1 to {MAX_SAMPLES} are allowed")
    size = batch.ByteSize()
    if size > MAX_BATCH_BYTES:
        return _bad(f"{size} bytes; up to {MAX_BATCH_BYTES} are allowed")
    violation = _check_columns(batch, samples)
    if violation is not None:
        return violation
    dt_us = batch.dt_us[:]  # a list: to walk the field itself takes several times as long
    if dt_us[0] != 0:
        return _bad("the first dt_us is not 0")
    first, last = batch.t0_us + min(dt_us), batch.t0_us + max(dt_us)
    if first <= 0 or last >= MAX_TIME_US:
        return _bad(f"times from {first} to {last} us are not between 1970 and 2100")
    return None


def _check_columns(batch: agent_pb2.TelemetryBatch, samples: int) -> Violation | None:
    if not 1 <= len(batch.columns) <= MAX_COLUMNS:
        return _bad(f"{len(batch.columns)} columns; 1 to {MAX_COLUMNS} are allowed")
    for column in batch.columns:
        values, name = len(column.values), column.name
        if values != samples:
            return _bad(f"a column has {values} values for {samples} samples")
        if bool(column.quantity) == bool(name) or len(name) > MAX_COLUMN_NAME:
            return _bad(
                f"a column must have either a quantity or a name of up to {MAX_COLUMN_NAME} "
                "characters"
            )
    return None


def check_gap(gap: agent_pb2.Gap) -> Violation | None:
    """Check a gap."""
    if not 0 <= gap.from_us <= gap.to_us < MAX_TIME_US or gap.samples > MAX_TIME_US:
        return _bad(
            f"a gap of {gap.samples} samples from {gap.from_us} to {gap.to_us} us is not in order, "
            "or not between 1970 and 2100"
        )
    if len(gap.reason) > MAX_COLUMN_NAME:
        return _bad(
            f"the reason of a gap has {len(gap.reason)} characters; up to {MAX_COLUMN_NAME} "
            "are allowed"
        )
    return None


def window_of(fill: float) -> int:
    """Return how many batches a stream may have on their way while the log is so full.

    Args:
        fill: Share of the log's bound that is taken, 1 = full.
    """
    if fill >= REFUSE_FROM:
        return 0
    room = (REFUSE_FROM - fill) / (REFUSE_FROM - SHRINK_FROM)
    return max(1, min(CREDIT_BATCHES, round(room * CREDIT_BATCHES)))


class OutboxOrder:
    """Where one outbox stands on one stream.

    Args:
        outbox_id: Random, made with the outbox.
        first_sequence: The oldest that the agent may send, from 1.
    """

    def __init__(self, outbox_id: str, first_sequence: int) -> None:
        self._outbox_id = outbox_id
        self._received = self._acknowledged = self._promised = first_sequence - 1

    def take(self, sequence: int, outbox_id: str, *, gap: bool) -> BatchVerdict | Violation:
        """Place a message; a gap stands at the last of the sequences it replaces.

        What is beyond the credit is dropped, and what follows a hole ends the stream: cumulative
        acknowledgement would otherwise tell the agent to forget what was dropped.
        """
        if outbox_id != self._outbox_id or not 0 < sequence < MAX_SEQUENCE:
            return _bad(f"sequence {sequence} of outbox {outbox_id[:64]!r} is not of this outbox")
        if sequence <= self._received:
            return BatchVerdict.DUPLICATE
        if gap:  # it stands for what the agent no longer has, so no credit could cover it
            self._received = sequence
            return BatchVerdict.STORE
        if sequence > max(self._promised, self._received):
            return BatchVerdict.BEYOND_CREDIT
        if sequence != self._received + 1:
            return Violation(
                reason="TelemetryOutOfOrder",
                message=f"batch {sequence} came after {self._received}, without those between",
            )
        self._received = sequence
        return BatchVerdict.STORE

    @property
    def is_calm(self) -> bool:
        """Whether all that came is durable, and more may come without further credit."""
        return self._acknowledged == self._received < self._promised

    def stored(self, sequence: int) -> None:
        """Note that all up to ``sequence`` are durable."""
        self._acknowledged = max(self._acknowledged, sequence)

    def credit(self, window: int) -> agent_pb2.TelemetryCredit:
        """Return what the agent is to be told when it may have ``window`` batches on their way."""
        self._promised = max(self._promised, self._acknowledged + window)
        return agent_pb2.TelemetryCredit(
            acknowledged_through=self._acknowledged, send_through=self._promised
        )


def _bad(message: str) -> Violation:
    return Violation(reason="BadTelemetry", message=message)
