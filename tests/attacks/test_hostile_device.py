"""The attacker is an agent with a valid certificate, or a device that has it say anything.

It speaks of its device, through the real gateway to the operator's own code.
"""

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.attacks.two_tenants import THIEF, VICTIM, Name, Speaker, Tenants, tenants, uid_of
from tests.headend.gateway.rig import now_us
from tests.waiting import until

from derops.wire.v1 import agent_pb2, control_pb2
from derops_operator.gateways.devices import DEVICE_EVERY_US
from derops_operator.reconciling.device_conditions import DEVICE_CONDITIONS, device_conditions

SAYINGS = 2_000


@pytest.fixture
async def both(tmp_path: Path, database_url: str) -> AsyncIterator[Tenants]:
    async with tenants(tmp_path, database_url) as running:
        await running.run()
        yield running


def bad(**point: Any) -> agent_pb2.DeviceFacts:
    return agent_pb2.DeviceFacts(bad_points=[agent_pb2.BadPoint(**point)])


async def beat(agent: Speaker, facts: agent_pb2.DeviceFacts) -> None:
    heartbeat = agent_pb2.Heartbeat(agent_sent_us=now_us(), device=facts)
    await agent.send(agent_pb2.AgentMessage(heartbeat=heartbeat))
    await agent.read_until("heartbeat_reply")


def told(both: Tenants, name: Name) -> dict[str, str]:
    """Return what the status of an asset says of its device."""
    session = both.controller.core.fleet.session(uid_of(name), now_us())
    return {each.type: each.message for each in device_conditions([], session)}


async def test_what_an_agent_says_of_its_device_is_on_its_own_asset_alone(both: Tenants) -> None:
    """H30: an agent names another tenant's asset and point in what it says of its device."""
    thief, owner = await both.agent(THIEF), await both.agent(VICTIM)
    await beat(owner, agent_pb2.DeviceFacts())
    await beat(thief, bad(name="pilot/battery", raw="uid-battery", problem="broken"))
    await both.operator_heard_all()

    assert told(both, VICTIM) == {}
    assert told(both, THIEF).keys() == {"TelemetryDegraded"}


async def test_a_device_that_flaps_as_fast_as_it_can_is_heard_seldom(
    both: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """H31: an agent says ever other nonsense of its device, thousands of times.

    The operator hears it once in five seconds and shows it once in thirty; others are heard.
    """
    heard: list[str] = []
    fleet = both.controller.core.fleet
    note = fleet.note_device

    def count(name: str, state: control_pb2.DeviceState) -> None:
        heard.append(state.asset_uid)
        note(name, state)

    monkeypatch.setattr(fleet, "note_device", count)
    thief, owner = await both.agent(THIEF), await both.agent(VICTIM)
    begun = time.monotonic()
    for number in range(SAYINGS):
        await beat(thief, bad(name=f"point{number}", raw=f"{number:#x}"))
    await beat(owner, bad(name="stateOfChargePercent"))
    await both.operator_heard_all()
    seconds = time.monotonic() - begun

    assert 1 <= heard.count(uid_of(THIEF)) <= 1 + seconds / 5
    assert heard.count(uid_of(VICTIM)) == 1
    assert told(both, VICTIM).keys() == {"TelemetryDegraded"}
    assert "point0" in told(both, THIEF)["TelemetryDegraded"]
    again_us = fleet.session(uid_of(THIEF), now_us()).device_again_us
    assert again_us is None or again_us <= now_us() + DEVICE_EVERY_US


LIES = [
    pytest.param(
        bad(name="\x1b[2J\r\n" * 50, raw="\0" * 5000, problem="\u202e" * 5000, since_us=-(2**63)),
        id="H32 what is long and does not print",
    ),
    pytest.param(
        agent_pb2.DeviceFacts(
            bad_points=[agent_pb2.BadPoint(name="p", since_us=2**63 - 1, samples=2**64 - 1)] * 2000,
            more_bad_points=2**32 - 1,
            silent_since_us=2**63 - 1,
        ),
        id="H33 numbers and times without sense",
    ),
    pytest.param(
        agent_pb2.DeviceFacts(silent_since_us=1, silence="ü" * 20_000, fallback_problem="%s{}" * 9),
        id="H34 a sentence of a page",
    ),
]


@pytest.mark.parametrize("facts", LIES)
async def test_a_status_holds_whatever_is_said(both: Tenants, facts: agent_pb2.DeviceFacts) -> None:
    """An agent says of its device what no status can hold: it is cut, and the status is written."""
    thief = await both.agent(THIEF)
    await beat(thief, facts)
    await both.operator_heard_all()

    said = told(both, THIEF)

    assert said.keys() <= set(DEVICE_CONDITIONS)
    assert said
    for message in said.values():
        assert 0 < len(message) <= 1024
        assert message.isprintable()


async def test_what_is_no_text_ends_the_stream_and_is_told_to_nobody(both: Tenants) -> None:
    """H35: an agent says of its device what is not UTF-8."""
    thief = await both.agent(THIEF)
    message = agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(device=bad(name="abc")))
    broken = message.SerializeToString().replace(b"abc", b"\xff\xfe\xfd")
    channel: Any = both.rig.agent(both._leaves[THIEF]).channel
    raw = channel.stream_stream("/derops.wire.v1.AgentLink/Connect")()
    hello = thief.hello(epoch=2)
    await raw.write(hello.SerializeToString())
    await until(lambda: uid_of(THIEF) in _epochs(both, 2))
    await raw.write(broken)
    async for answer in raw:
        if agent_pb2.GatewayMessage.FromString(answer).bye.reason:
            assert agent_pb2.GatewayMessage.FromString(answer).bye.reason == "BadMessage"
            break
    await both.operator_heard_all()

    assert told(both, THIEF) == {}


def _epochs(both: Tenants, epoch: int) -> set[str]:
    assert both.rig.gateway is not None
    streams = both.rig.gateway.exchange._streams
    return {uid for uid, each in streams.items() if each.session.epoch == epoch}
