"""Two gateways and two writers on one JetStream: whichever dies, the other goes on."""

import asyncio
import contextlib
from contextlib import ExitStack
from pathlib import Path

import pytest
from tests.faults.checker import violations
from tests.faults.reading import last_offsets, read
from tests.field.headend import FieldHeadend
from tests.field.sender import Sender
from tests.stack.nats import NatsServer
from tests.stack.postgres import PostgresServer

from derops_headend.eventlog.jetstream import JetStreamLogReader
from derops_headend.eventlog.streams import JetStreamSettings

pytestmark = pytest.mark.timeout(180)
SENDERS = 6
PATIENCE_SECONDS = 60
DATABASE = "two_gateways"


async def produce(senders: list[Sender], batches: int) -> None:
    for _ in range(batches):
        for sender in senders:
            sender.produce()
        await asyncio.sleep(0.02)


async def test_agents_move_between_gateways_and_nothing_is_lost_or_twice(
    tmp_path: Path, postgres_server: PostgresServer
) -> None:
    with ExitStack() as opened:
        nats = opened.enter_context(NatsServer())
        url = postgres_server.create_database(DATABASE)
        headends = []
        for number in range(2):
            (directory := tmp_path / str(number)).mkdir()
            headend = FieldHeadend(
                directory,
                assets=SENDERS,
                database_url=url,
                environment={
                    "DEROPS_GATEWAY_EVENT_LOG": nats.url,
                    "DEROPS_GATEWAY_REPLICA": f"gateway-{number}",
                    "DEROPS_WRITER_EVENT_LOG": nats.url,
                },
            )
            headends.append(opened.enter_context(headend))
            await headend.give_desired_state()
        senders = [
            Sender(headends[number % 2], headends[number % 2].assets[number])
            for number in range(SENDERS)
        ]
        running = [asyncio.create_task(sender.run()) for sender in senders]
        try:
            await produce(senders, 20)
            for dying, other in (headends, headends[::-1]):
                await produce(senders, 20)
                dying.parts["gateway"].kill()
                for number, sender in enumerate(senders):
                    sender.move(other, other.assets[number])
                await produce(senders, 20)
                async with asyncio.timeout(PATIENCE_SECONDS):
                    await asyncio.gather(*(sender.settled() for sender in senders))
                await asyncio.to_thread(dying.start, "gateway")
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
        with contextlib.closing(JetStreamLogReader(JetStreamSettings(url=nats.url))) as log:
            async with asyncio.timeout(PATIENCE_SECONDS):
                while len(set(await asyncio.to_thread(last_offsets, url, log))) > 1:
                    await asyncio.sleep(0.1)
            journals = [sender.journal for sender in senders]
            stored = await asyncio.to_thread(read, url, log, journals, "nobody")

    assert list(violations(journals, stored)) == []
    assert [journal.acknowledged for journal in journals] == [100] * SENDERS
    assert not stored.quarantined
