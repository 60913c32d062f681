"""Floods: one peer that sends, or does not read, as much as it can.

Each is tried on the gateway program, whose memory the kernel tells; the operator reads nothing.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from tests.attacks.flooding import FloodedGateway, great_report
from tests.headend.gateway.pki import Leaf
from tests.headend.gateway.rig import Agent

from derops.wire.v1 import agent_pb2

REPORTS = 3_000
"""Of 60 KiB each: 176 MiB."""

UNACKNOWLEDGED = 16
"""More at once would only end the stream."""

GROWTH_MEBIBYTES = 60.0
"""What a flood may add, with what gRPC and the allocator keep for themselves."""


@pytest.fixture
async def flooded(tmp_path: Path) -> AsyncIterator[FloodedGateway]:
    gateway = FloodedGateway(tmp_path)
    await gateway.start()
    yield gateway
    await gateway.stop()


@pytest.fixture
def leaf(flooded: FloodedGateway) -> Leaf:
    return flooded.agent_ca.agent("battery")


async def flood(agent: Agent, messages: Iterable[agent_pb2.AgentMessage]) -> None:
    """Send a little faster than is acknowledged; return when all is sent or the stream ended."""
    may_send = asyncio.Semaphore(UNACKNOWLEDGED)

    async def read() -> None:
        while (message := await agent.call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            if message.WhichOneof("kind") == "report_ack":
                may_send.release()

    async def send() -> None:
        for message in messages:
            with suppress(TimeoutError):
                await asyncio.wait_for(may_send.acquire(), 0.001)
            await agent.send(message)

    tasks = [asyncio.create_task(read()), asyncio.create_task(send())]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for failure in await asyncio.gather(*tasks, return_exceptions=True):
        if failure and not isinstance(
            failure, asyncio.CancelledError | grpc.aio.AioRpcError | asyncio.InvalidStateError
        ):
            raise failure


async def test_one_dispatch_reported_without_end(flooded: FloodedGateway, leaf: Leaf) -> None:
    """A1: the holder of an agent's key says ever newer great reports of its one dispatch.

    Only the newest waits for the operator, which reads nothing.
    """
    operator = flooded.operator()
    await operator.snapshot([flooded.asset("battery", leaf)], [flooded.dispatch("d-1")])
    agent = flooded.agent(leaf)
    await agent.connect()
    before = flooded.resident_mebibytes()

    await flood(agent, (great_report("d-1", n) for n in range(1, REPORTS + 1)))

    grown = flooded.peak_mebibytes() - before
    print(f"A1: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most")
    assert grown < GROWTH_MEBIBYTES


async def test_reports_of_dispatches_that_nobody_knows(flooded: FloodedGateway, leaf: Leaf) -> None:
    """A2: the holder of an agent's key says great reports of ever new uids."""
    operator = flooded.operator()
    await operator.snapshot([flooded.asset("battery", leaf)])
    agent = flooded.agent(leaf)
    await agent.connect()
    before = flooded.resident_mebibytes()

    await flood(agent, (great_report(f"unknown-{n}", n) for n in range(1, REPORTS + 1)))

    print(f"A2: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most")
    assert flooded.peak_mebibytes() - before < GROWTH_MEBIBYTES


async def test_great_reports_of_very_many_dispatches(flooded: FloodedGateway, leaf: Leaf) -> None:
    """A3: a tenant has thousands of dispatches, and its agent says a great report of each."""
    dispatches = [flooded.dispatch(f"d-{n}") for n in range(REPORTS)]
    operator = flooded.operator()
    await operator.snapshot([flooded.asset("battery", leaf)], dispatches)
    agent = flooded.agent(leaf)
    await agent.connect()
    before = flooded.resident_mebibytes()

    await flood(agent, (great_report(f"d-{n}", n + 1) for n in range(REPORTS)))

    print(f"A3: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most")
    assert flooded.peak_mebibytes() - before < GROWTH_MEBIBYTES


async def test_a_new_ledger_on_each_of_many_streams(flooded: FloodedGateway, leaf: Leaf) -> None:
    """A4: the holder of an agent's key reconnects with a new ledger each time, of one dispatch."""
    operator = flooded.operator()
    await operator.snapshot([flooded.asset("battery", leaf)], [flooded.dispatch("d-1")])
    before = flooded.resident_mebibytes()

    for stream in range(1, 31):
        agent = flooded.agent(leaf)
        agent.ledger_id = f"ledger-{stream}"
        await agent.connect(stream)
        reports = (great_report("d-1", n, agent.ledger_id) for n in range(1, 101))
        await flood(agent, reports)
        await agent.close()

    print(f"A4: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most")
    assert flooded.peak_mebibytes() - before < GROWTH_MEBIBYTES
