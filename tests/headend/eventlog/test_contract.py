"""What every engine of the event log promises."""

import asyncio

import pytest
from tests.headend.eventlog.engines import Opened

from derops.wire.v1 import dispatch_pb2, log_pb2
from derops_headend.eventlog.ports import EventLog, LogFullError, LogMissingError, LogReader
from derops_headend.eventlog.records import MAX_RECORD_BYTES

ASSET = dispatch_pb2.AssetId(uid="one", namespace="ns", name="battery")


def entry(body: bytes) -> log_pb2.LogEntry:
    return log_pb2.LogEntry(kind=log_pb2.TELEMETRY, asset=ASSET, received_us=1, body=body)


async def bodies(reader: LogReader, after: int = 0) -> list[bytes]:
    found: list[bytes] = []
    while records := await asyncio.to_thread(reader.read, after):
        found += [each.body for record in records for each in record.record.entries]
        after = records[-1].offset
    return found


async def bounds(reader: LogReader) -> tuple[int, int]:
    return await asyncio.to_thread(reader.bounds)


async def test_there_is_no_log_before_a_gateway_made_it(opened: Opened) -> None:
    with pytest.raises(LogMissingError):
        await opened.reader()


async def test_an_empty_log(opened: Opened) -> None:
    await opened.log()
    reader = await opened.reader()

    assert await bounds(reader) == (1, 0)
    assert await bodies(reader) == []


async def test_what_was_appended_is_read_in_order(opened: Opened) -> None:
    log, reader = await opened.log(), await opened.reader()

    await log.append([entry(b"a"), entry(b"b")])
    await log.append([entry(b"c")])

    assert await bodies(reader) == [b"a", b"b", b"c"]
    assert [record.offset for record in await asyncio.to_thread(reader.read, 1)] == [2]
    assert [record.offset for record in await asyncio.to_thread(reader.read, 0, 1)] == [1]
    assert (await bodies(reader))[0] == b"a"


async def test_concurrent_appends_keep_the_order_of_the_calls(opened: Opened) -> None:
    log, reader = await opened.log(), await opened.reader()
    names = [b"%d" % number for number in range(60)]

    await asyncio.gather(*(log.append([entry(name)]) for name in names))

    assert await bodies(reader) == names


async def test_records_are_bounded_and_a_greater_entry_stands_alone(opened: Opened) -> None:
    log, reader = await opened.log(), await opened.reader()
    quarter = bytes(MAX_RECORD_BYTES // 4)

    await log.append([*[entry(quarter)] * 6, entry(bytes(MAX_RECORD_BYTES * 2))])

    records = await asyncio.to_thread(reader.read, 0)
    assert [len(record.record.entries) for record in records] == [3, 3, 1]
    assert all(record.record.ByteSize() <= MAX_RECORD_BYTES for record in records[:-1])


async def test_one_read_is_bounded_in_bytes(opened: Opened) -> None:
    log, reader = await opened.log(), await opened.reader()
    for number in range(48):
        await log.append([entry(b"%d" % number + bytes(MAX_RECORD_BYTES - 100))])

    records = await asyncio.to_thread(reader.read, 0)

    assert sum(record.record.ByteSize() for record in records) < 6 * 1024 * 1024
    assert len(await bodies(reader)) == 48


async def test_the_bytes_of_one_record_can_be_had_unchecked(opened: Opened) -> None:
    log, reader = await opened.log(), await opened.reader()
    await log.append([entry(b"a")])

    held = log_pb2.LogRecord(entries=[entry(b"a")]).SerializeToString()
    assert await asyncio.to_thread(reader.raw, 1) == held
    assert await asyncio.to_thread(reader.raw, 2) == b""


async def test_many_small_records_come_in_one_read(opened: Opened) -> None:
    log, reader = await opened.log(), await opened.reader()
    for number in range(300):
        await log.append([entry(b"%d" % number)])

    assert len(await asyncio.to_thread(reader.read, 0)) == 300


async def test_a_reader_trims_and_offsets_are_never_used_again(opened: Opened) -> None:
    log, reader = await opened.log(), await opened.reader()
    for name in (b"a", b"b", b"c"):
        await log.append([entry(name)])

    await asyncio.to_thread(reader.trim, 2)
    await log.append([entry(b"d")])

    assert await bounds(reader) == (3, 4)
    assert await bodies(reader) == [b"c", b"d"]
    assert await bodies(reader, after=3) == [b"d"]


async def test_the_log_outlives_who_opened_it(opened: Opened) -> None:
    first = await opened.engine.open()
    await first.append([entry(b"a")])
    reader = await opened.reader()
    await opened.engine.close(first)

    again = await opened.log()
    await again.append([entry(b"b")])
    other = await opened.reader()

    assert other.log_id == reader.log_id
    assert len(other.log_id) == 32
    assert await bodies(other) == [b"a", b"b"]


async def test_an_abandoned_append_does_not_disturb_the_others(opened: Opened) -> None:
    log, reader = await opened.log(), await opened.reader()
    abandoned = asyncio.create_task(log.append([entry(b"abandoned")]))
    await asyncio.sleep(0)
    abandoned.cancel()

    await log.append([entry(b"kept")])

    assert (await bodies(reader))[-1] == b"kept"


async def append_until_full(log: EventLog) -> int:
    for number in range(1000):
        try:
            await log.append([entry(b"%04d" % number + bytes(MAX_RECORD_BYTES // 2))])
        except LogFullError:
            return number
    raise AssertionError("never full")


async def test_a_full_log_refuses_until_it_was_trimmed(opened: Opened) -> None:
    log = await opened.log(max_bytes=4 * 1024 * 1024)
    reader = await opened.reader()

    taken = await append_until_full(log)
    with pytest.raises(LogFullError):
        await log.append([entry(b"x" * MAX_RECORD_BYTES)])
    assert [int(body[:4]) for body in await bodies(reader)] == list(range(taken))
    async with asyncio.timeout(20):
        while log.fill() < 0.9:
            await asyncio.sleep(0.05)

    await asyncio.to_thread(reader.trim, taken - 2)
    await log.append([entry(b"taken")])

    assert (await bodies(reader))[-1] == b"taken"
    async with asyncio.timeout(20):
        while log.fill() > 0.5:
            await asyncio.sleep(0.05)
