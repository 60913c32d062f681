"""What the checker is given is all that was held at one moment."""

import pytest
from tests.faults.reading import read_log

from derops.wire.v1 import agent_pb2, dispatch_pb2, log_pb2
from derops_headend.eventlog.ports import StoredRecord


def entry(sequence: int, kind: log_pb2.EntryKind = log_pb2.TELEMETRY) -> log_pb2.LogEntry:
    batch = agent_pb2.TelemetryBatch(sequence=sequence, outbox_id="o")
    return log_pb2.LogEntry(
        kind=kind, asset=dispatch_pb2.AssetId(uid="a"), body=batch.SerializeToString()
    )


class PlayedLog:
    """Records 1 to 10, of which the writer trims four whenever somebody reads."""

    log_id = "log"

    def __init__(self, trimmed_at_a_time: int) -> None:
        self._step, self._first = trimmed_at_a_time, 1

    def bounds(self) -> tuple[int, int]:
        return self._first, 10

    def read(self, after: int, limit: int = 256) -> list[StoredRecord]:
        wanted = range(after + 1, min(after + 3, 10) + 1)
        self._first = min(10, self._first + self._step)
        return [
            StoredRecord(offset, log_pb2.LogRecord(entries=[entry(offset)]))
            for offset in wanted
            if offset >= self._first
        ]

    def raw(self, offset: int) -> bytes:
        raise NotImplementedError

    def trim(self, through: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Nothing is open."""


@pytest.mark.parametrize(
    ("trimmed_at_a_time", "offsets"),
    [(0, list(range(1, 11))), (4, [10]), (1, [*range(2, 11)])],
)
def test_a_log_is_read_to_its_end_although_it_is_trimmed_meanwhile(
    trimmed_at_a_time: int, offsets: list[int]
) -> None:
    found = read_log(PlayedLog(trimmed_at_a_time))

    assert [offset for offset, _ in found] == offsets
    assert [kept.sequence for _, kept in found] == offsets
