"""Records put together by hand are what protobuf makes of the same entries."""

import pytest

from derops.wire.v1 import dispatch_pb2, log_pb2
from derops_headend.eventlog.records import MAX_RECORD_BYTES, pack


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 16383, 16384, 300_000])
def test_a_record_of_one_is_what_protobuf_makes(size: int) -> None:
    asset = dispatch_pb2.AssetId(uid="u", namespace="ns", name="battery")
    entry = log_pb2.LogEntry(kind=log_pb2.GAP, asset=asset, received_us=5, body=bytes(size))

    records = pack([entry.SerializeToString()])

    assert records == [log_pb2.LogRecord(entries=[entry]).SerializeToString()]


def test_packed_records_have_all_entries_in_order() -> None:
    entries = [
        log_pb2.LogEntry(received_us=number, body=bytes(number * 1000)) for number in range(40)
    ]

    records = pack(entry.SerializeToString() for entry in entries)

    read = [entry for body in records for entry in log_pb2.LogRecord.FromString(body).entries]
    assert read == entries
    assert len(records) > 1
    assert all(len(record) <= MAX_RECORD_BYTES for record in records)
