"""What JetStream adds to the contract: kills of the server, shards, damage, and misuse."""

import asyncio
from collections.abc import Iterable, Iterator
from typing import Any

import nats
import nats.errors
import pytest
from nats.js import JetStreamContext
from structlog.testing import capture_logs
from tests.counters import value_of
from tests.headend.eventlog.engines import MAX_BYTES
from tests.headend.eventlog.test_contract import bodies, entry
from tests.stack.nats import NatsServer

from derops.errors import LogDamagedError, SchemaTooNewError
from derops.wire.v1 import dispatch_pb2, log_pb2
from derops_headend.eventlog import metrics, streams
from derops_headend.eventlog.jetstream import (
    JetStreamEventLog,
    JetStreamLogReader,
    JetStreamSettings,
)
from derops_headend.eventlog.ports import LogMismatchError, LogMissingError, LogUnavailableError
from derops_headend.eventlog.records import MAX_RECORD_BYTES
from derops_headend.eventlog.streams import count_shards, shard_of


@pytest.fixture
def own_server() -> Iterator[NatsServer]:
    with NatsServer() as server:
        yield server


async def test_what_was_acknowledged_outlives_kills_of_the_server(own_server: NatsServer) -> None:
    where = JetStreamSettings(url=own_server.url)
    log = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    acknowledged: list[bytes] = []
    stopping = asyncio.Event()

    async def append_for_ever() -> None:
        number = 0
        while not stopping.is_set():
            number += 1
            item = entry(b"%d" % number)
            while True:  # as the gateway does: the same again until it is taken
                try:
                    await log.append([item])
                    break
                except LogUnavailableError:
                    await asyncio.sleep(0.05)
            acknowledged.append(item.body)

    appending = asyncio.create_task(append_for_ever())
    for _ in range(5):
        before = len(acknowledged)
        async with asyncio.timeout(30):
            while len(acknowledged) < before + 50:
                await asyncio.sleep(0.01)
        await asyncio.to_thread(own_server.process.kill)
        await asyncio.to_thread(own_server.start)
    stopping.set()
    await appending

    reader = await asyncio.to_thread(JetStreamLogReader, where)
    held = await bodies(reader)
    reader.close()
    await log.close()
    assert held == acknowledged, "in order, none lost, none twice"
    assert len(acknowledged) > 250


async def test_an_asset_stays_in_its_shard(nats_server: NatsServer) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix="SHARDED")
    log = await JetStreamEventLog.open(where, shards=3, max_bytes=MAX_BYTES)
    entries = [
        log_pb2.LogEntry(
            kind=log_pb2.TELEMETRY,
            asset=dispatch_pb2.AssetId(uid=f"uid-{number % 7}"),
            body=b"%d" % number,
        )
        for number in range(70)
    ]
    for start in range(0, 70, 10):
        await log.append(entries[start : start + 10])

    readers = [await asyncio.to_thread(JetStreamLogReader, where, shard) for shard in range(3)]
    held = [await bodies(reader) for reader in readers]
    assert len({reader.log_id for reader in readers}) == 3
    for shard, reader in enumerate(readers):
        assert held[shard] == [e.body for e in entries if shard_of(e.asset.uid, 3) == shard]
        reader.close()
    await log.close()
    assert sum(map(len, held)) == 70


async def test_another_number_of_shards_is_refused(nats_server: NatsServer) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix="FIXED")
    await (await JetStreamEventLog.open(where, shards=2, max_bytes=MAX_BYTES)).close()

    with pytest.raises(LogMismatchError, match="made with 2 shards, not 3"):
        await JetStreamEventLog.open(where, shards=3, max_bytes=MAX_BYTES)


async def test_an_old_server_is_refused(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "OLDEST_SERVER", (99, 0, 0))

    with pytest.raises(LogMismatchError, match="upgrade it"):
        await JetStreamEventLog.open(
            JetStreamSettings(url=nats_server.url), shards=1, max_bytes=MAX_BYTES
        )


async def test_a_server_that_is_away_is_said_so() -> None:
    where = JetStreamSettings(url="nats://127.0.0.1:1")

    with pytest.raises(LogUnavailableError, match=r"127\.0\.0\.1:1"):
        await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    with pytest.raises(LogUnavailableError):
        await asyncio.to_thread(JetStreamLogReader, where)


@pytest.mark.parametrize("headers", [None, {"Derops-Crc32": "1"}])
async def test_a_damaged_record_is_named(
    nats_server: NatsServer, headers: dict[str, Any] | None
) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix=f"DAMAGED{bool(headers):d}")
    log = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    await log.append([entry(b"good")])
    connection = await nats.connect(nats_server.url)
    await connection.jetstream().publish(where.stream(0), b"not ours", headers=headers)
    await connection.close()
    await log.append([entry(b"after")])

    reader = await asyncio.to_thread(JetStreamLogReader, where)
    assert [r.offset for r in await asyncio.to_thread(reader.read, 0)] == [1]
    with pytest.raises(LogDamagedError, match="record 2") as caught:
        await asyncio.to_thread(reader.read, 1)
    assert caught.value.log == where.stream(0)
    reader.close()
    await log.close()


async def test_a_new_message_that_is_called_a_duplicate_is_not_believed(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix="TWICE")
    monkeypatch.setattr("secrets.token_hex", lambda _: "f" * 16)  # each log has the same boot id
    first = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    second = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    await first.append([entry(b"a")])

    with pytest.raises(LogUnavailableError, match="duplicate"):
        await second.append([entry(b"b")])
    await second.append([entry(b"b")])

    reader = await asyncio.to_thread(JetStreamLogReader, where)
    assert await bodies(reader) == [b"a", b"b"]
    reader.close()
    await first.close()
    await second.close()


async def test_an_append_whose_acknowledgement_was_lost_is_stored_once(
    nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix="UNHEARD")
    log = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    great = [entry(name * (MAX_RECORD_BYTES - 100)) for name in (b"x", b"x", b"y")]
    publish, heard = JetStreamContext.publish, iter([True, True, False])

    async def lose_the_last(context: JetStreamContext, *arguments: Any, **more: Any) -> Any:
        answer = await publish(context, *arguments, **more)
        if not next(heard):
            raise nats.errors.TimeoutError
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(JetStreamContext, "publish", lose_the_last)
        with pytest.raises(LogUnavailableError):
            await log.append(great)
    await log.append([entry(b"between")])
    await log.append(great)
    await log.append(great)

    reader = await asyncio.to_thread(JetStreamLogReader, where)
    held = [body[:7] for body in await bodies(reader)]
    assert held == [b"x" * 7, b"x" * 7, b"y" * 7, b"between", b"x" * 7, b"x" * 7, b"y" * 7]
    reader.close()
    await log.close()


async def remove(where: JetStreamSettings, offsets: Iterable[int]) -> None:
    """Remove records as the documentation of old repairs said, or as a person may."""
    connection = await nats.connect(where.url)
    for offset in offsets:
        await connection.jetstream().delete_msg(where.stream(0), offset)
    await connection.close()


async def test_removed_records_are_passed_over_however_many(nats_server: NatsServer) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix="REMOVED")
    log = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    for number in range(1, 51):
        await log.append([entry(b"%d" % number)])
    await remove(where, range(2, 49))

    reader = await asyncio.to_thread(JetStreamLogReader, where)
    assert [r.offset for r in await asyncio.to_thread(reader.read, 0)] == [1, 49, 50]
    assert [r.offset for r in await asyncio.to_thread(reader.read, 1, 1)] == [49]
    reader.close()
    await log.close()


def overwrite(server: NatsServer, block: str, body: bytes) -> None:
    """Damage the bytes of a message in a file of the server."""
    (path,) = server.directory.rglob(block)
    held = path.read_bytes()
    with path.open("r+b") as file:
        file.seek(held.index(body) + len(body) // 2)
        file.write(b"#")


async def test_a_record_that_the_server_cannot_read_is_damaged_and_not_missing(
    own_server: NatsServer,
) -> None:
    where = JetStreamSettings(url=own_server.url)
    log = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    for number in range(50):  # more than one file of the server's
        await log.append([entry(b"%02d-" % number * 80_000)])
    await asyncio.to_thread(own_server.process.terminate)
    overwrite(own_server, "1.blk", b"07-" * 80_000)
    await asyncio.to_thread(own_server.start)

    reader = await asyncio.to_thread(JetStreamLogReader, where)
    assert [r.offset for r in await asyncio.to_thread(reader.read, 5)] == [6, 7]
    with pytest.raises(LogDamagedError, match="record 8") as caught:
        await asyncio.to_thread(reader.read, 7)
    assert caught.value.offset == 8
    assert await asyncio.to_thread(reader.raw, 8) == b""
    assert (await asyncio.to_thread(reader.read, 8))[0].offset == 9
    reader.close()
    await log.close()


async def test_numbers_that_the_server_gives_again_are_an_alarm(own_server: NatsServer) -> None:
    where = JetStreamSettings(url=own_server.url)
    log = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    for number in range(20):
        await log.append([entry(b"%02d-" % number * 100)])
    before = value_of(metrics.LOG_WENT_BACK)
    await asyncio.to_thread(own_server.process.kill)
    overwrite(own_server, "1.blk", b"07-" * 100)
    await asyncio.to_thread(own_server.start)  # it cuts its file where the damage begins

    with capture_logs() as events:
        await append_patiently(log, b"next")
        await append_patiently(log, b"after")

    assert value_of(metrics.LOG_WENT_BACK) == before + 1
    (alarm,) = [event for event in events if event["event"] == "log.went_back"]
    assert (alarm["acknowledged"], alarm["last"]) == (20, 7)
    await log.close()


async def append_patiently(log: JetStreamEventLog, body: bytes) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await log.append([entry(body)])
                return
            except LogUnavailableError:
                await asyncio.sleep(0.05)


async def test_the_number_of_shards_is_read_from_the_log(nats_server: NatsServer) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix="COUNTED")
    with pytest.raises(LogMissingError):
        await asyncio.to_thread(count_shards, where)
    await (await JetStreamEventLog.open(where, shards=3, max_bytes=MAX_BYTES)).close()

    assert await asyncio.to_thread(count_shards, where) == 3


@pytest.mark.parametrize(
    ("metadata", "error"),
    [
        ({"log_id": "x", "shards": "1", "format": "2"}, SchemaTooNewError),
        ({}, LogMismatchError),
    ],
    ids=["of a newer program", "not ours"],
)
async def test_a_stream_that_would_be_misread_is_refused_by_all(
    nats_server: NatsServer, metadata: dict[str, str], error: type[Exception]
) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix=f"FOREIGN{len(metadata)}")
    connection = await nats.connect(nats_server.url)
    await connection.jetstream().add_stream(
        name=where.stream(0), subjects=[where.stream(0)], metadata=metadata
    )
    await connection.close()

    with pytest.raises(error, match=where.stream(0)):
        await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    with pytest.raises(error, match=where.stream(0)):
        await asyncio.to_thread(JetStreamLogReader, where)
    with pytest.raises(error, match=where.stream(0)):
        await asyncio.to_thread(count_shards, where)


async def test_a_stream_that_the_server_has_no_room_for_is_said_so(
    nats_server: NatsServer,
) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix="GREAT")

    with pytest.raises(LogUnavailableError, match="insufficient storage"):
        await JetStreamEventLog.open(where, shards=1, max_bytes=2**60)
