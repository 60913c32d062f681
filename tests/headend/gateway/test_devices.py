"""What an agent says of its device: kept by its stream, told to the operator when it changes."""

from typing import Any

import pytest
from tests.headend.gateway.rig import Agent, Operator, Rig, now_us
from tests.pki import Leaf

from derops.devices import MAX_DEVICE_BYTES
from derops.wire.v1 import agent_pb2, control_pb2
from derops_headend.gateway import asset_watch

SILENT = agent_pb2.DeviceFacts(silent_since_us=7, silence="no answer within 2 s")
WELL = agent_pb2.DeviceFacts()


def bad(raw: str = "0x0065", *, samples: int = 1) -> agent_pb2.DeviceFacts:
    point = agent_pb2.BadPoint(name="stateOfChargePercent", raw=raw, since_us=5, samples=samples)
    return agent_pb2.DeviceFacts(bad_points=[point])


async def beat(agent: Agent, facts: agent_pb2.DeviceFacts | None) -> None:
    """Send a heartbeat and wait until it was taken."""
    sent_us = now_us()
    heartbeat = agent_pb2.Heartbeat(agent_sent_us=sent_us, device=facts)
    await agent.send(agent_pb2.AgentMessage(heartbeat=heartbeat))
    while (await agent.read_until("heartbeat_reply")).agent_sent_us != sent_us:
        pass


async def heard(rig: Rig, operator: Operator) -> list[control_pb2.DeviceState]:
    """Return all that the operator was told of devices so far."""
    told: list[control_pb2.DeviceState] = []
    version = await operator.say(asset=rig.asset("mark"))
    while (message := await operator.read()).accepted_version < version:
        batch = message.batch.messages if message.HasField("batch") else [message]
        told += [each.device for each in batch if each.HasField("device")]
    return told


@pytest.fixture
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asset_watch, "LOOK_EVERY_US", 0)


@pytest.mark.usefixtures("_no_pause")
async def test_what_changes_is_told_and_what_does_not_is_told_once(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    begun_us = now_us()

    for facts in (None, WELL, WELL, bad(), bad(samples=2), bad(samples=3), SILENT, WELL):
        await beat(agent, facts)

    states = await heard(rig, operator)
    assert [each.facts for each in states] == [WELL, bad(samples=0), SILENT, WELL]
    assert all(each.asset_uid == "uid-battery" for each in states)
    assert all(begun_us <= each.received_us <= now_us() for each in states)


@pytest.mark.usefixtures("_no_pause")
async def test_a_new_operator_is_told_what_holds_before_the_session(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    await beat(agent, bad())
    await beat(agent, SILENT)

    other = rig.operator()
    await other.snapshot([rig.asset("battery", leaf)], start_ms=2000)

    first, second = await other.read(), await other.read()
    assert first.device.facts == SILENT
    assert second.session.connected
    assert first.device.received_us >= second.session.since_us


async def test_what_an_older_agent_does_not_say_nobody_says(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    await beat(agent, None)

    assert await heard(rig, operator) == []


async def test_what_is_said_too_often_is_told_by_a_later_heartbeat(
    rig: Rig, leaf: Leaf, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    for number in range(200):
        await beat(agent, SILENT if number % 2 else bad())
    monkeypatch.setattr(asset_watch, "LOOK_EVERY_US", 0)
    assert rig.gateway is not None
    live: Any = rig.gateway.exchange._streams["uid-battery"]
    live._watch._look_us = 0
    await beat(agent, SILENT)

    assert [each.facts for each in await heard(rig, operator)] == [bad(samples=0), SILENT]


@pytest.mark.usefixtures("_no_pause")
async def test_what_a_stream_said_is_over_with_it(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    agent = rig.agent(leaf)
    await agent.connect(epoch=1)
    await beat(agent, SILENT)
    again = rig.agent(leaf)
    await again.connect(epoch=2)
    await heard(rig, operator)

    other = rig.operator()
    await other.snapshot([rig.asset("battery", leaf)], start_ms=2000)

    assert (await other.read()).WhichOneof("kind") == "session"


@pytest.mark.usefixtures("_no_pause")
async def test_what_is_too_long_or_does_not_print_is_cut(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    long = agent_pb2.BadPoint(name="\x1b[2J" + "n" * 1000, raw="\n" * 100, problem="ü" * 500)
    await beat(agent, agent_pb2.DeviceFacts(bad_points=[long] * 20, silence="\0" * 20_000))

    (state,) = await heard(rig, operator)
    assert state.facts.ByteSize() <= MAX_DEVICE_BYTES
    assert (len(state.facts.bad_points), state.facts.more_bad_points) == (8, 12)
    point = state.facts.bad_points[0]
    assert all(text.isprintable() for text in (point.name, point.raw, point.problem))


@pytest.mark.usefixtures("_no_pause")
async def test_a_clock_that_is_set_back_makes_nothing_older_than_its_stream(
    rig: Rig, leaf: Leaf, operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = rig.agent(leaf)
    await agent.connect()
    assert rig.gateway is not None
    exchange = rig.gateway.exchange
    live: Any = exchange._streams["uid-battery"]
    monkeypatch.setattr(live, "_now_us", lambda: now_us() - 3_600_000_000)
    await beat(agent, SILENT)

    (state,) = await heard(rig, operator)

    assert state.received_us >= live.session.since_us
