"""One live stream for each asset: the highest epoch, and no identity twice."""

import asyncio
import sqlite3
from contextlib import suppress

import grpc
import pytest
from tests.counters import value_of
from tests.headend.gateway.counting import clones_suspected
from tests.headend.gateway.rig import Agent, Operator, Rig
from tests.pki import Leaf

from derops.errors import SettingError
from derops.wire.v1 import agent_pb2, agent_pb2_grpc, control_pb2
from derops_headend.gateway import metrics


async def session_of(operator: Operator, *, connected: bool) -> control_pb2.Session:
    while True:
        session = await operator.read_until("session")
        if session.connected == connected:
            return session  # type: ignore[no-any-return]


async def test_a_stream_is_told_to_operator_and_log(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect(epoch=7)

    session = await session_of(operator, connected=True)
    assert (session.asset_uid, session.epoch) == ("uid-battery", 7)
    assert session.serial_number == leaf.known.serial_number
    assert list(session.capability.modes) == ["ActivePower"]
    assert (await rig.log.connection("Connected")).epoch == 7

    await agent.send(agent_pb2.AgentMessage(bye=agent_pb2.Bye(reason="Shutdown")))
    session = await session_of(operator, connected=False)
    assert session.end_reason == "Shutdown"
    assert (await rig.log.connection("Disconnected")).reason == "Shutdown"


async def test_an_agent_that_vanishes_is_seen(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    await session_of(operator, connected=True)

    agent.call.cancel()

    assert (await session_of(operator, connected=False)).end_reason == "ConnectionLost"


async def test_a_higher_epoch_takes_over(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    old, new = rig.agent(leaf), rig.agent(leaf)
    await old.connect(epoch=1)

    await new.connect(epoch=2)

    assert (await old.read_until("bye")).reason == "Superseded"
    await operator.say(dispatch=rig.dispatch("d1"))
    assert (await new.read_until("dispatch")).uid == "d1"
    while (session := await session_of(operator, connected=True)).epoch != 2:
        pass
    assert session.connected


async def test_a_lower_epoch_is_refused_with_the_highest_known(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    live, late = rig.agent(leaf), rig.agent(leaf)
    await live.connect(epoch=5)

    await late.send(late.hello(epoch=4))

    code, details = await late.refusal()
    assert code is grpc.StatusCode.UNAVAILABLE
    assert details == "EpochTooLow: highest known epoch is 5"
    await operator.say(dispatch=rig.dispatch("d1"))
    assert (await live.read_until("dispatch")).uid == "d1"


async def test_an_epoch_of_another_replica_ends_the_stream(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect(epoch=5)

    await operator.say(epoch_seen=control_pb2.EpochSeen(asset_uid="uid-battery", epoch=9))

    assert (await agent.read_until("bye")).reason == "Superseded"
    late = rig.agent(leaf)
    await late.send(late.hello(epoch=6))
    assert (await late.refusal())[1] == "EpochTooLow: highest known epoch is 9"


async def test_the_return_of_an_earlier_instance_is_a_clone(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    before = clones_suspected()
    first, second = rig.agent(leaf), rig.agent(leaf)
    await first.connect(epoch=1, instance="a")
    await second.connect(epoch=2, instance="b")

    again = rig.agent(leaf)
    await again.send(again.hello(epoch=3, instance="a"))

    assert (await again.refusal())[1].startswith("CloneSuspected: ")
    assert (await second.read_until("bye")).reason == "CloneSuspected"
    while (session := await session_of(operator, connected=False)).epoch != 3:
        pass
    assert session.end_reason == "CloneSuspected"
    assert clones_suspected() == before + 1


async def test_renewing_over_a_second_channel_is_no_clone(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    for epoch in (1, 2, 3):
        await rig.agent(leaf).connect(epoch=epoch, instance="a")


async def test_a_gateway_takes_a_file_of_before_holders_were_remembered(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    await rig.agent(leaf).connect(epoch=1, instance="a")
    await rig.stop()
    with sqlite3.connect(rig.directory / "desired.db") as database:
        database.execute("DROP TABLE holders")
        database.execute("DROP TABLE schema_note")  # which came later
    database.close()

    await rig.start()

    await rig.agent(leaf).connect(epoch=2, instance="b")


async def test_heartbeats_are_answered_and_silence_ends_the_stream(rig: Rig, leaf: Leaf) -> None:
    await rig.stop()
    rig.heartbeat_seconds = 1
    await rig.start()
    await rig.operator().snapshot([rig.asset("battery", leaf)])
    agent = rig.agent(leaf)
    messages = await agent.connect()
    assert messages[0].welcome.heartbeat_seconds == 1

    await agent.send(agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(agent_sent_us=42)))
    reply = await agent.read_until("heartbeat_reply")
    assert reply.agent_sent_us == 42
    assert 0 < reply.gateway_received_us <= reply.gateway_sent_us

    assert (await agent.read_until("bye")).reason == "AgentSilent"


async def test_stopping_says_bye_and_is_quick(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    assert rig.gateway is not None

    async with asyncio.timeout(10):
        await rig.gateway.stop()
    rig.gateway = None

    assert (await agent.read_until("bye")).reason == "GatewayStopping"
    assert (await rig.log.connection("Disconnected")).reason == "GatewayStopping"


async def test_one_connection_has_few_streams(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    first = rig.agent(leaf)
    await first.connect(epoch=1)
    stub = agent_pb2_grpc.AgentLinkStub(first.channel)  # type: ignore[no-untyped-call]
    calls = [stub.Connect() for _ in range(3)]
    fifth = Agent(first.channel, stub.Connect())

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await fifth.connect(epoch=2)
    for call in calls:
        call.cancel()


async def test_a_port_in_use_is_a_wrong_setting(rig: Rig) -> None:
    assert rig.gateway is not None
    rig.agent_listen = f"127.0.0.1:{rig.gateway.agent_port}"
    running, rig.gateway = rig.gateway, None

    with pytest.raises(SettingError, match="DEROPS_GATEWAY_AGENT_LISTEN"):
        await rig.start()

    rig.gateway = running


@pytest.mark.parametrize(("said", "counted"), [("Shutdown", "Shutdown"), ("Nonsense7", "Other")])
async def test_what_an_agent_says_at_its_end_makes_no_metric_of_its_own(
    rig: Rig, leaf: Leaf, operator: Operator, said: str, counted: str
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    await rig.log.connection("Connected")
    before = value_of(metrics.ENDED_STREAMS.labels(counted))
    await agent.send(agent_pb2.AgentMessage(bye=agent_pb2.Bye(reason=said)))

    assert (await rig.log.connection("Disconnected")).reason == said
    assert value_of(metrics.ENDED_STREAMS.labels(counted)) == before + 1


async def beat_without_reading(deaf: Agent) -> None:
    """Ask for ever more answers."""
    while True:
        await deaf.send(agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(agent_sent_us=7)))


async def test_an_agent_that_never_reads_is_ended_and_nobody_else_waits(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    other_leaf = rig.agent_ca.agent("other")
    await operator.accepted(await operator.say(asset=rig.asset("other", other_leaf)))
    other, deaf = rig.agent(other_leaf), rig.agent(leaf)
    await other.connect()
    await deaf.connect()

    beating = asyncio.create_task(beat_without_reading(deaf))
    ended = asyncio.create_task(rig.log.connection("Disconnected"))
    beat = agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(agent_sent_us=8))
    while not ended.done():
        await other.send(beat)
        assert (await other.read_until("heartbeat_reply")).agent_sent_us == 8

    assert (await ended).reason == "AgentTooSlow"
    beating.cancel()  # when it hears of it is up to it: no word gets past what it does not read
    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
        await beating
