"""Which link of an asset's data path is broken: told to the operator once, and once when mended."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.headend.gateway.rig import Agent, Operator, Rig, now_us
from tests.headend.gateway.test_devices import heard
from tests.pki import Leaf

from derops.wire.v1 import agent_pb2, control_pb2, log_pb2
from derops_headend.gateway import admission_control

S = 1_000_000
LIMIT = 60
LOOK = 5
WELL = agent_pb2.DeviceFacts()


class Hours:
    """The gateway's monotonic clock, which a test may put forward."""

    def __init__(self) -> None:
        self.ahead_seconds = 0
        self.time_ns = time.time_ns

    def monotonic_ns(self) -> int:
        return time.monotonic_ns() + self.ahead_seconds * 1_000_000_000

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_seconds


@pytest.fixture
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    hours = Hours()
    monkeypatch.setattr("derops_headend.gateway.server.time", hours)
    return hours


@pytest.fixture
async def rig(tmp_path: Path, hours: Hours) -> AsyncIterator[Rig]:
    """A rig in which no stream is silent for too long, however far the clock is put forward."""
    rig = Rig(tmp_path)
    rig.heartbeat_seconds = 1_000_000
    await rig.start()
    yield rig
    rig.log.open.set()
    await rig.stop()


class Site:
    """One connected agent, and time that passes for it and its gateway."""

    def __init__(self, rig: Rig, agent: Agent, hours: Hours, operator: Operator) -> None:
        self.rig, self.agent, self.hours, self.operator = rig, agent, hours, operator
        self.begun_us = now_us()

    def pass_seconds(self, seconds: int) -> None:
        """Let time pass in which the gateway took all that came."""
        self.hours.ahead_seconds += seconds
        assert self.rig.gateway is not None
        admission = self.rig.gateway.exchange.admission
        if admission._free_from is not None:
            admission._free_from -= seconds

    async def beat(
        self,
        device: agent_pb2.DeviceFacts | None = WELL,
        *,
        slow_seconds: float = 0,
        older: bool = False,
        **facts: Any,
    ) -> None:
        """Send a heartbeat of a clock that is slow, and wait until it was taken.

        Times in ``facts`` are in seconds ago.
        """
        sent_us = now_us() - round(slow_seconds * S)
        told: dict[str, Any] = {"sampled_us": 2} | facts
        for name in told:
            if name.endswith("_us") and told[name] is not None:
                told[name] = sent_us - round(told[name] * S)
        heartbeat = agent_pb2.Heartbeat(
            agent_sent_us=sent_us,
            device=device,
            telemetry=None if older else agent_pb2.TelemetryFacts(**told),
        )
        await self.agent.send(agent_pb2.AgentMessage(heartbeat=heartbeat))
        while (await self.agent.read_until("heartbeat_reply")).agent_sent_us != sent_us:
            pass

    async def told(self) -> list[control_pb2.LinkState | None]:
        """Return the path in each message of the asset that the operator got; None = none."""
        states = await heard(self.rig, self.operator)
        return [each.path if each.HasField("path") else None for each in states]

    async def reasons(self) -> list[str | None]:
        return [each.reason if each is not None else None for each in await self.told()]


@pytest.fixture
async def site(rig: Rig, leaf: Leaf, operator: Operator, hours: Hours) -> Site:
    agent = rig.agent(leaf)
    await agent.connect()
    assert rig.gateway is not None
    admission = rig.gateway.exchange.admission
    async with asyncio.timeout(10):
        while not admission.free_us:  # its next turn is what is awaited
            await asyncio.sleep(0.001)
    return Site(rig, agent, hours, operator)


async def silent(site: Site) -> None:
    since_us = site.begun_us - 95 * S
    await site.beat(agent_pb2.DeviceFacts(silent_since_us=since_us, silence="no answer"))


async def stopped(site: Site) -> None:
    await site.beat(sampled_us=95)


async def full(site: Site) -> None:
    await site.beat(problem="database or disk is full", problem_since_us=95)


async def behind(site: Site) -> None:
    await site.beat(waiting_samples=12, oldest_waiting_us=95)


FAULTS = [
    pytest.param(silent, "Device", "DeviceSilent", " s, 60 s are allowed: no answer", id="silent"),
    pytest.param(stopped, "Sampling", "NoSamples", "95 s old, 60 s are allowed", id="no samples"),
    pytest.param(full, "Outbox", "OutboxFailing", "is full", id="disk"),
    pytest.param(behind, "Outbox", "OutboxBehind", "12 samples wait", id="backlog"),
]


@pytest.mark.parametrize(("fail", "link", "reason", "words"), FAULTS)
async def test_a_fault_is_told_once_and_once_when_it_is_mended(
    site: Site, fail: Callable[[Site], Any], link: str, reason: str, words: str
) -> None:
    site.pass_seconds(LIMIT)
    begun_us = now_us()
    for each in (Site.beat, fail, fail, fail, Site.beat, Site.beat):
        await each(site)
        site.pass_seconds(LOOK)

    states = [each for each in await site.told() if each is not None]

    assert [each.reason for each in states] == ["", reason, ""]
    assert [each.link for each in states] == ["", link, ""]
    assert words in states[1].message
    assert states[0].message == states[2].message == ""
    assert all(begun_us <= each.since_us <= now_us() for each in states)


async def test_a_wrong_clock_is_told_once_it_lasts_and_accuses_no_other_link(site: Site) -> None:
    site.pass_seconds(LIMIT)
    await site.beat()
    site.pass_seconds(LOOK)
    # As the clock is set, what was sampled before is older, on that clock, than it may be.
    await site.beat(slow_seconds=-3600, sampled_us=3605)
    for _ in range(3):
        site.pass_seconds(LIMIT)
        await site.beat(slow_seconds=-3600)
    site.pass_seconds(LIMIT)
    await site.beat(sampled_us=-3600, waiting_samples=3, oldest_waiting_us=-3600)
    site.pass_seconds(LOOK)
    await site.beat()

    states = [each for each in await site.told() if each is not None]

    assert [each.reason for each in states] == ["", "ClockWrong", ""]
    assert states[1].link == "Sampling"
    assert "3600 s ahead of the gateway's" in states[1].message or "3599 s" in states[1].message


async def test_batches_that_are_refused_are_told_until_a_good_one_comes(site: Site) -> None:
    site.pass_seconds(LIMIT)
    await site.beat()
    for sequence in range(1, 9):
        await site.agent.telemetry(sequence, dt_us=[])
        site.pass_seconds(15)
        await site.beat()
    await site.agent.telemetry(9)
    site.pass_seconds(LOOK)
    await site.beat()

    states = [each for each in await site.told() if each is not None]

    assert [each.reason for each in states] == ["", "TelemetryRefused", ""]
    assert (states[1].link, "0 samples; 1 to 1000" in states[1].message) == ("EventLog", True)
    assert len(site.rig.log.of(log_pb2.TELEMETRY)) == 9, "refused ones are kept too"


async def test_one_bad_batch_among_good_ones_is_no_fault(site: Site) -> None:
    site.pass_seconds(LIMIT)
    for sequence in range(1, 12):
        await site.agent.telemetry(sequence, **({"dt_us": []} if sequence % 2 else {}))
        site.pass_seconds(15)
        await site.beat()

    assert await site.reasons() == [""]


async def test_who_comes_with_a_backlog_may_catch_up_first(site: Site) -> None:
    await behind(site)
    site.pass_seconds(LOOK)
    await site.beat(agent_pb2.DeviceFacts(fallback_problem="news"))
    site.pass_seconds(LIMIT)
    await behind(site)

    # First neither broken nor well; as it caught up, well.
    assert await site.reasons() == [None, "", "OutboxBehind"]


async def test_a_device_that_was_silent_before_its_agent_came_is_told_at_once(site: Site) -> None:
    await silent(site)

    assert await site.reasons() == ["DeviceSilent"]


async def test_of_an_older_agent_no_path_is_told(site: Site) -> None:
    site.pass_seconds(LIMIT)
    await site.beat(older=True)
    site.pass_seconds(LOOK)
    await site.beat(agent_pb2.DeviceFacts(silent_since_us=1), older=True)

    assert await site.told() == [None, None]


async def test_an_agent_that_knows_nothing_of_its_device_yet_is_not_judged(site: Site) -> None:
    site.pass_seconds(LIMIT)
    await site.beat(None, sampled_us=95)

    assert await site.told() == []


async def test_a_new_operator_is_told_the_path_before_the_session(
    site: Site, rig: Rig, leaf: Leaf
) -> None:
    site.pass_seconds(LIMIT)
    await full(site)

    other = rig.operator()
    await other.snapshot([rig.asset("battery", leaf)], start_ms=2000)

    first, second = await other.read(), await other.read()
    assert (first.device.path.link, first.device.path.reason) == ("Outbox", "OutboxFailing")
    assert second.session.connected


async def test_what_flips_at_each_look_is_told_twice_a_minute(site: Site) -> None:
    """Ten flips in 100 s: a fault, and that it is mended, within each minute."""
    site.pass_seconds(LIMIT)
    await site.beat()
    for _ in range(10):
        site.pass_seconds(LOOK)
        await stopped(site)
        site.pass_seconds(LOOK)
        await site.beat()

    reasons = await site.reasons()

    assert reasons[:3] == ["", "NoSamples", ""]
    assert 2 < len(reasons) <= 1 + 2 * 2


async def test_one_fault_after_another_is_told_once_a_minute(site: Site) -> None:
    site.pass_seconds(LIMIT)
    seconds = 0
    for _ in range(15):
        for fail in (full, stopped):
            await fail(site)
            site.pass_seconds(LOOK)
            seconds += LOOK

    reasons = await site.reasons()

    assert set(reasons) == {"OutboxFailing", "NoSamples"}
    assert 2 <= len(reasons) <= 1 + seconds / LIMIT


async def test_what_all_agents_wait_for_is_no_backlog_of_one(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission_control, "HELD_UP_SECONDS", 0.01)
    assert site.rig.gateway is not None
    admission = site.rig.gateway.exchange.admission
    site.pass_seconds(LIMIT)
    site.rig.log.open.clear()
    await site.agent.telemetry(1)
    async with asyncio.timeout(10):
        while admission.free_us:  # its next turn is what is awaited
            await asyncio.sleep(0.001)
    await behind(site)
    assert await site.reasons() == [""], "the link of this asset holds"
    site.rig.log.open.set()
    async with asyncio.timeout(10):
        while not admission.free_us:
            await asyncio.sleep(0.001)
    site.pass_seconds(LOOK)
    await behind(site)
    assert await site.reasons() == [], "nor is it just after, as it catches up"

    site.pass_seconds(LIMIT)
    await behind(site)
    assert await site.reasons() == ["OutboxBehind"]


async def test_an_interval_that_becomes_shorter_makes_no_sample_late_at_once(
    site: Site, leaf: Leaf
) -> None:
    rig = site.rig
    await site.operator.say(asset=rig.asset("battery", leaf, telemetry_interval_seconds=900))
    await site.agent.read_until("asset")
    site.pass_seconds(LIMIT)
    await site.beat(sampled_us=800)
    await site.operator.say(asset=rig.asset("battery", leaf, telemetry_interval_seconds=10))
    await site.agent.read_until("asset")
    site.pass_seconds(LOOK)
    await site.beat(sampled_us=805)
    assert await site.reasons() == [""]

    site.pass_seconds(LIMIT)
    await site.beat(sampled_us=865)
    assert await site.reasons() == ["NoSamples"]


async def test_heartbeats_that_come_too_soon_are_not_looked_at(site: Site) -> None:
    site.pass_seconds(LIMIT)
    await site.beat()
    for _ in range(50):
        await full(site)
    assert await site.reasons() == [""]
    site.pass_seconds(LOOK)
    await full(site)
    assert await site.reasons() == ["OutboxFailing"]
