"""What JetStream adds to the contract: kills of the server, shards, damage, and misuse."""

import asyncio
from collections.abc import Iterator
from typing import Any

import nats
import pytest
from tests.headend.eventlog.engines import MAX_BYTES
from tests.headend.eventlog.test_contract import bodies, entry
from tests.stack.nats import NatsServer

from derops.errors import LogDamagedError
from derops.wire.v1 import dispatch_pb2, log_pb2
from derops_headend.eventlog import jetstream
from derops_headend.eventlog.jetstream import (
    JetStreamEventLog,
    JetStreamLogReader,
    JetStreamSettings,
    LogMismatchError,
    shard_of,
)
from derops_headend.ports import LogUnavailableError


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
    monkeypatch.setattr(jetstream, "OLDEST_SERVER", (99, 0, 0))

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


async def test_a_first_attempt_that_is_called_a_duplicate_is_not_believed(
    nats_server: NatsServer,
) -> None:
    where = JetStreamSettings(url=nats_server.url, prefix="TWICE")
    log = await JetStreamEventLog.open(where, shards=1, max_bytes=MAX_BYTES)
    await log.append([entry(b"a")])

    with pytest.raises(LogUnavailableError, match="duplicate"):
        await log.append([entry(b"a")])
    await log.close()
