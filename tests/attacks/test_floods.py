"""Floods: one peer that sends, or does not read, as much as it can.

Each is tried on the gateway program, whose memory the kernel tells; the operator reads nothing.
"""

import asyncio
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from pathlib import Path

import grpc
import pytest
from tests.attacks.flooding import FloodedGateway, great_report
from tests.counters import value_of
from tests.headend.gateway.rig import Agent, Rig
from tests.pki import Leaf

from derops import observability
from derops.devices import MAX_BAD_POINTS, MAX_DEVICE_BYTES
from derops.wire.v1 import agent_pb2, log_pb2
from derops_headend.gateway.agent_link import MAX_OPENING
from derops_headend.gateway.log_appender import EVENTS_AT_ONCE
from derops_headend.gateway.metrics import UNSTORED_CONNECTIONS
from derops_headend.gateway.report_desk import REPORTS_BYTES, REPORTS_SURE

REPORTS = 3_000
"""Of 60 KiB each: 176 MiB."""

UNACKNOWLEDGED = 16
"""More at once would only end the stream."""

LINES_AT_ONCE = int(observability.LINES_AT_ONCE)
UNREAD = '{part="unread"}'
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


async def flood(
    agent: Agent, messages: Iterable[agent_pb2.AgentMessage], *, patience_seconds: float = 5.0
) -> None:
    """Send as fast as is acknowledged; return when all is sent or the stream ended.

    Args:
        agent: Its stream.
        messages: What it says.
        patience_seconds: How long it waits for an acknowledgement before it goes on without.
    """
    may_send = asyncio.Semaphore(UNACKNOWLEDGED)

    async def read() -> None:
        while (message := await agent.call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
            if message.WhichOneof("kind") == "report_ack":
                may_send.release()

    async def send() -> None:
        for message in messages:
            with suppress(TimeoutError):
                await asyncio.wait_for(may_send.acquire(), patience_seconds)
            await agent.send(message)
        with suppress(TimeoutError):  # to end the call now would take back what is on its way
            for _ in range(UNACKNOWLEDGED):
                await asyncio.wait_for(may_send.acquire(), patience_seconds)

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
    """F1: the holder of an agent's key says ever newer great reports of its one dispatch.

    Only the newest waits for the operator, which reads nothing.
    """
    operator = flooded.operator()
    await operator.snapshot([flooded.asset("battery", leaf)], [flooded.dispatch("d-1")])
    agent = flooded.agent(leaf)
    await agent.connect()
    before = flooded.resident_mebibytes()

    await flood(agent, (great_report("d-1", n) for n in range(1, REPORTS + 1)))

    print(f"F1: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most")
    assert flooded.peak_mebibytes() - before < GROWTH_MEBIBYTES
    told = [await operator.read_until("report")]
    while told[-1].report.sequence < REPORTS:
        told.append(await operator.read_until("report"))
    assert len(told) < REPORTS / 10, "of what waited, it hears the newest"


async def test_nonsense_of_a_device_without_end(flooded: FloodedGateway, leaf: Leaf) -> None:
    """F12: the holder of an agent's key says ever other great nonsense of its device.

    The gateway keeps 4 KiB of it, and the operator, which reads nothing, finds the newest only.
    """
    operator = flooded.operator()
    await operator.snapshot([flooded.asset("battery", leaf)])
    agent = flooded.agent(leaf)
    await agent.connect()
    before = flooded.resident_mebibytes()

    await flood(agent, map(_nonsense, range(REPORTS)), patience_seconds=0.001)

    print(f"F12: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most")
    assert flooded.peak_mebibytes() - before < GROWTH_MEBIBYTES
    state = await operator.read_until("device")
    assert len(state.facts.bad_points) == MAX_BAD_POINTS
    assert state.facts.ByteSize() <= MAX_DEVICE_BYTES


def _nonsense(number: int) -> agent_pb2.AgentMessage:
    point = agent_pb2.BadPoint(name=f"point{number}", raw="f" * 20_000, problem="p" * 100)
    facts = agent_pb2.DeviceFacts(bad_points=[point] * 3 + [agent_pb2.BadPoint()] * 50)
    return agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(device=facts))


async def test_reports_of_dispatches_that_nobody_knows(flooded: FloodedGateway, leaf: Leaf) -> None:
    """F2: the holder of an agent's key says great reports of ever new uids."""
    operator = flooded.operator()
    await operator.snapshot([flooded.asset("battery", leaf)])
    agent = flooded.agent(leaf)
    await agent.connect()
    before = flooded.resident_mebibytes()

    reports = (great_report(f"unknown-{n}", n) for n in range(1, REPORTS + 1))
    await flood(agent, reports, patience_seconds=0.001)

    print(f"F2: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most")
    assert flooded.peak_mebibytes() - before < GROWTH_MEBIBYTES


async def test_great_reports_of_very_many_dispatches(flooded: FloodedGateway, leaf: Leaf) -> None:
    """F3: a tenant has thousands of dispatches, and its agent says a great report of each."""
    dispatches = [flooded.dispatch(f"d-{n}") for n in range(REPORTS)]
    operator = flooded.operator()
    await operator.snapshot([flooded.asset("battery", leaf)], dispatches)
    agent = flooded.agent(leaf)
    await agent.connect()
    before = flooded.resident_mebibytes()

    reports = (great_report(f"d-{n}", n + 1) for n in range(REPORTS))
    await flood(agent, reports, patience_seconds=0.001)

    print(f"F3: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most")
    assert flooded.peak_mebibytes() - before < GROWTH_MEBIBYTES


async def test_a_new_ledger_on_each_of_many_streams(flooded: FloodedGateway, leaf: Leaf) -> None:
    """F4: the holder of an agent's key reconnects with a new ledger each time, of one dispatch."""
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

    print(f"F4: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most")
    assert flooded.peak_mebibytes() - before < GROWTH_MEBIBYTES


async def test_many_agents_with_great_reports_together(flooded: FloodedGateway) -> None:
    """F11: eighty agents fill what they may: 80 MiB together, of which the gateway takes 64."""
    names = [f"battery-{number}" for number in range(80)]
    leaves = {name: flooded.agent_ca.agent(name) for name in names}
    operator = flooded.operator()
    await operator.snapshot(
        [flooded.asset(name, leaf) for name, leaf in leaves.items()],
        [flooded.dispatch(f"{name}-{n}", name) for name in names for n in range(20)],
    )
    before = flooded.resident_mebibytes()

    for name, leaf in leaves.items():
        agent = flooded.agent(leaf)
        await agent.connect()
        reports = (great_report(f"{name}-{n}", n + 1) for n in range(20))
        await flood(agent, reports, patience_seconds=0.05)
        await agent.close()

    held = flooded.metrics("derops_gateway_held_bytes")
    print(f"F11: {before:.0f} MiB before, {flooded.peak_mebibytes():.0f} MiB at most, {held}")
    assert 60 * 1024**2 < held['{part="reports"}'] <= REPORTS_BYTES + 80 * REPORTS_SURE
    assert flooded.metrics("derops_gateway_bound_reached_total")['{part="reports"}'] > 80
    assert flooded.peak_mebibytes() - before < 1.5 * REPORTS_BYTES / 1024**2 + GROWTH_MEBIBYTES


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    rig = Rig(tmp_path)
    rig.hello_seconds = 8.0
    await rig.start()
    yield rig
    rig.log.open.set()
    await rig.stop()


async def test_what_the_log_does_not_take(rig: Rig) -> None:
    """F5: while the event log is stuck, an agent brings great reports on one stream after another.

    A new stream brings no new allowance; its neighbour is heard all the same.
    """
    leaf, other_leaf = rig.agent_ca.agent("battery"), rig.agent_ca.agent("other")
    operator = rig.operator()
    await operator.snapshot(
        [rig.asset("battery", leaf), rig.asset("other", other_leaf)],
        [rig.dispatch("d-1"), rig.dispatch("d-2", "other")],
    )
    assert rig.gateway is not None
    unstored = rig.gateway.exchange.journal.unstored
    rig.log.open.clear()
    for epoch in (1, 2, 3):
        agent = rig.agent(leaf)
        await agent.connect(epoch)
        reports = (great_report("d-1", n) for n in range(1, 41))
        sending = asyncio.create_task(flood(agent, reports, patience_seconds=0.001))
        ended = await rig_ended(rig, epoch)
        await sending
        assert ended == "TooMuchUnstored"
        assert unstored.used <= 2 * 1024**2
    other = rig.agent(other_leaf)
    await other.connect()
    await other.report("d-2")

    while (await operator.read_until("report")).report.dispatch_uid != "d-2":
        pass


async def test_streams_that_never_say_hello(rig: Rig) -> None:
    """F10: the holder of an agent's key opens streams without end and says no Hello on them."""
    leaf = rig.agent_ca.agent("battery")
    await rig.operator().snapshot([rig.asset("battery", leaf)])
    silent = [rig.agent(leaf) for _ in range(3 * MAX_OPENING)]
    refused = await asyncio.gather(*(each.refusal() for each in silent))  # or not, in time

    reasons = Counter(message.partition(":")[0] for _, message in refused)
    assert reasons == {"TooManyStreams": 2 * MAX_OPENING, "HelloTimeout": MAX_OPENING}


async def rig_ended(rig: Rig, epoch: int) -> str:
    """Wait until a stream ended; return why. The log that would tell is stuck."""
    assert rig.gateway is not None
    sessions = rig.gateway.exchange.sessions
    async with asyncio.timeout(30):
        while (last := sessions.last("uid-battery")) is None or (last.epoch, last.connected) != (
            epoch,
            False,
        ):
            await asyncio.sleep(0.01)
    return last.end_reason


async def test_an_agent_that_asks_and_never_reads(flooded: FloodedGateway, leaf: Leaf) -> None:
    """F6: the holder of an agent's key sends heartbeats, and reads no answer to them."""
    operator = flooded.operator()
    await operator.snapshot([flooded.asset("battery", leaf)])
    before = flooded.resident_mebibytes()
    beat = agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(agent_sent_us=7))

    async def ask(agent: Agent) -> None:
        with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await agent.send(beat)

    for epoch in range(1, 4):
        agent = flooded.agent(leaf)
        await agent.connect(epoch)
        asking = asyncio.create_task(ask(agent))
        async with asyncio.timeout(60):
            while flooded.metrics("derops_gateway_bound_reached_total").get(UNREAD, 0) < epoch:
                await asyncio.sleep(0.1)
        asking.cancel()
        await agent.close()

    assert flooded.metrics("derops_gateway_bound_reached_total")[UNREAD] == 3
    assert flooded.peak_mebibytes() - before < GROWTH_MEBIBYTES


async def test_who_reconnects_for_ever_does_not_fill_the_history(rig: Rig) -> None:
    """F7: the holder of an agent's key connects and leaves, again and again.

    The history holds a bounded number of its events; the rest is counted.
    """
    leaf = rig.agent_ca.agent("battery")
    await rig.operator().snapshot([rig.asset("battery", leaf)])
    before = value_of(UNSTORED_CONNECTIONS)

    for epoch in range(1, 101):
        agent = rig.agent(leaf)
        await agent.connect(epoch)
        await agent.send(agent_pb2.AgentMessage(bye=agent_pb2.Bye(reason="Shutdown")))
        await agent.close()

    assert rig.gateway is not None
    sessions = rig.gateway.exchange.sessions
    async with asyncio.timeout(10):
        while (last := sessions.last("uid-battery")) is not None and last.connected:
            await asyncio.sleep(0.01)
    told = len(rig.log.of(log_pb2.CONNECTION))
    assert EVENTS_AT_ONCE <= told <= EVENTS_AT_ONCE + 5
    assert value_of(UNSTORED_CONNECTIONS) - before == 200 - told


async def test_strangers_without_a_certificate_fill_no_log(flooded: FloodedGateway) -> None:
    """F8: whoever reaches the agent port begins TLS, or anything else, again and again."""
    before = flooded.errors.stat().st_size
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    for tls in (context, None):
        for _ in range(200):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", flooded.gateway.agent_port, ssl=tls
            )
            writer.write(b"GET / HTTP/1.0\r\n\r\n")
            with suppress(ConnectionError, ssl.SSLError):
                while await reader.read(1000):
                    pass
            writer.transport.abort()

    assert flooded.errors.stat().st_size == before


async def test_a_refused_peer_fills_no_log(flooded: FloodedGateway) -> None:
    """F9: a certificate of an asset that is not there comes again and again; it is counted."""
    await flooded.operator().snapshot([])
    leaf = flooded.agent_ca.agent("gone")
    begun, came = time.monotonic(), 0
    while came < LINES_AT_ONCE or flooded.metric("derops_log_lines_left_out_total") < 10:
        for _ in range(50):
            agent = flooded.agent(leaf)
            assert (await agent.refusal())[1].startswith("AssetUnknown: ")
            await agent.close()
        came += 50
    seconds = time.monotonic() - begun

    refused = flooded.metrics("derops_gateway_refused_streams_total")
    assert refused['{reason="AssetUnknown"}'] == came
    lines = len(flooded.log_lines("agent.refused"))
    assert lines <= min(came - 10, LINES_AT_ONCE + observability.LINES_PER_SECOND * seconds + 1)
