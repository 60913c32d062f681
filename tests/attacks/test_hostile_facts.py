"""The attacker is an agent with a valid certificate: it lies about where its telemetry stands."""

import random
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.attacks.two_tenants import THIEF, VICTIM, Speaker, Tenants, tenants, uid_of
from tests.headend.gateway.rig import now_us

from derops.data_path import LINK_OF
from derops.devices import MAX_DEVICE_BYTES
from derops.wire.v1 import agent_pb2, control_pb2
from derops_headend.fleet.asset_path import MAX_EVIDENCE_BYTES
from derops_headend.gateway import asset_watch

LIES = 1_000
INSTANTS = (-(2**63), -1, 0, 1, 2**53, 2**63 - 1)
COUNTS = (0, 1, 2**64 - 1)
TEXTS = ("", "full", "\x1b[2J\r\n" * 500, "ü" * 9_000, "\u202e\0" * 4_000, "%s{}" * 99)
S = 1_000_000


@pytest.fixture
async def both(tmp_path: Path, database_url: str) -> AsyncIterator[Tenants]:
    async with tenants(tmp_path, database_url) as running:
        await running.run()
        yield running


def lie(draw: random.Random) -> agent_pb2.Heartbeat:
    """Return a heartbeat of which no number need fit another."""
    honest = now_us()
    instants = (*INSTANTS, honest, honest - 95 * S, honest + 3600 * S)
    return agent_pb2.Heartbeat(
        agent_sent_us=draw.choice(instants),
        device=agent_pb2.DeviceFacts(
            silent_since_us=draw.choice((*instants, *[0] * 20)), silence=draw.choice(TEXTS)
        ),
        telemetry=agent_pb2.TelemetryFacts(
            sampled_us=draw.choice(instants),
            waiting_samples=draw.choice(COUNTS),
            oldest_waiting_us=draw.choice(instants),
            problem=draw.choice(TEXTS),
            problem_since_us=draw.choice(instants),
        ),
    )


async def say(agent: Speaker, heartbeat: agent_pb2.Heartbeat) -> None:
    await agent.send(agent_pb2.AgentMessage(heartbeat=heartbeat))
    await agent.read_until("heartbeat_reply")


def hear(both: Tenants, monkeypatch: pytest.MonkeyPatch) -> list[control_pb2.DeviceState]:
    """Return what the operator will have been told of devices and their paths."""
    states: list[control_pb2.DeviceState] = []
    fleet = both.controller.core.fleet
    note = fleet.note_device

    def take(name: str, state: control_pb2.DeviceState) -> None:
        states.append(state)
        note(name, state)

    monkeypatch.setattr(fleet, "note_device", take)
    return states


async def test_whatever_an_agent_says_of_its_telemetry_is_judged_in_bounded_words(
    both: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R172: an agent says of clock, device and outbox what cannot be, in each heartbeat anew.

    All of it is looked at, and nothing that was told has to stand: the worst that could be heard.
    """
    monkeypatch.setattr(asset_watch, "LOOK_EVERY_US", 0)
    monkeypatch.setattr(asset_watch, "settling_us", lambda _: 0)
    monkeypatch.setattr(asset_watch, "is_clock_wrong", lambda _: False)
    heard = hear(both, monkeypatch)
    thief, owner = await both.agent(THIEF), await both.agent(VICTIM)
    draw = random.Random(172)
    for _ in range(LIES):
        await say(thief, lie(draw))
    sent_us = now_us()
    honest = agent_pb2.Heartbeat(
        agent_sent_us=sent_us,
        device=agent_pb2.DeviceFacts(),
        telemetry=agent_pb2.TelemetryFacts(sampled_us=sent_us - 95 * S),
    )
    await say(owner, honest)
    await both.operator_heard_all()

    lies = [each for each in heard if each.asset_uid == uid_of(THIEF)]
    (truth,) = (each for each in heard if each.asset_uid == uid_of(VICTIM))
    reasons = {each.path.reason for each in lies}
    assert len(reasons) > 3, "it is believed of itself"
    assert reasons <= {"", *LINK_OF}
    for state in lies:
        assert state.path.message.isprintable()
        assert len(state.path.message.encode()) <= MAX_EVIDENCE_BYTES
        assert state.ByteSize() <= MAX_DEVICE_BYTES + 2 * MAX_EVIDENCE_BYTES
    assert (truth.path.reason, "95 s old" in truth.path.message) == ("NoSamples", True)


async def test_who_breaks_another_link_with_each_heartbeat_is_heard_seldom(
    both: Tenants, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R173: an agent says with each of thousands of heartbeats that something else is broken."""
    heard = hear(both, monkeypatch)
    thief, owner = await both.agent(THIEF), await both.agent(VICTIM)
    draw = random.Random(173)
    begun = time.monotonic()
    for _ in range(LIES):
        await say(thief, lie(draw))
    await say(owner, agent_pb2.Heartbeat(agent_sent_us=now_us(), device=agent_pb2.DeviceFacts()))
    await both.operator_heard_all()
    seconds = time.monotonic() - begun

    assert 1 <= [each.asset_uid for each in heard].count(uid_of(THIEF)) <= 1 + seconds / 5
    assert [each.asset_uid for each in heard].count(uid_of(VICTIM)) == 1
