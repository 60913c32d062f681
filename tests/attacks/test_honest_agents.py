"""Nobody attacks: crash loops, bad links, renewals and wrong clocks never look like a thief."""

import asyncio
import sqlite3
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.attacks.agents import SECOND_US, HonestAgent
from tests.headend.gateway.conftest import _no_pace, leaf, operator, rig
from tests.headend.gateway.counting import clones_suspected
from tests.headend.gateway.rig import Operator, Rig
from tests.pki import Leaf

from derops.wire.v1 import control_pb2, log_pb2
from derops_agent.link import link as link_module

__all__ = ["_no_pace", "leaf", "operator", "rig"]

YEARS_50_US = 50 * 365 * 86_400 * SECOND_US


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(link_module, "CERTIFICATE_CHECK_SECONDS", 0.05)


async def connected(operator: Operator) -> control_pb2.Session:
    while not (session := await operator.read_until("session")).connected:
        pass
    return session  # type: ignore[no-any-return]


def refusals(rig: Rig) -> list[str]:
    entries = rig.log.of(log_pb2.CONNECTION)
    found = [log_pb2.ConnectionEvent.FromString(entry.body) for entry in entries]
    return [each.reason for each in found if each.event == "Refused"]


async def test_a_crash_loop_of_thirty_restarts_is_no_clone(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    before = clones_suspected()
    for number in range(30):
        agent = rig.agent(leaf)
        await agent.connect(time.time_ns() // 1_000_000 + number, f"process-{number}")
        if number % 2:
            await agent.close()  # the kernel closes what a killed process had
        else:
            agent.call.cancel()

    assert clones_suspected() == before
    await rig.agent(leaf).connect(time.time_ns() // 1_000_000 + 99, "process-30")


async def test_a_flapping_link_of_one_process_is_no_clone(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    before = clones_suspected()
    for number in range(30):  # the streams before are half open: nobody told the gateway
        await rig.agent(leaf).connect(time.time_ns() // 1_000_000 + number, "process")

    assert clones_suspected() == before


async def test_processes_whose_death_nobody_told_are_no_clones_once_they_are_silent(
    rig: Rig, leaf: Leaf
) -> None:
    await rig.stop()
    rig.heartbeat_seconds = 1
    await rig.start()
    await rig.operator().snapshot([rig.asset("battery", leaf)])
    before = clones_suspected()

    for number in range(5):  # each power cut takes longer than two heartbeats
        await rig.agent(leaf).connect(time.time_ns() // 1_000_000 + number, f"boot-{number}")
        await asyncio.sleep(2.1)

    assert clones_suspected() == before


@pytest.mark.parametrize("ahead_us", [YEARS_50_US, -YEARS_50_US])
async def test_an_agent_with_a_clock_fifty_years_off_connects_and_stays_so(
    rig: Rig, leaf: Leaf, operator: Operator, tmp_path: Path, ahead_us: int
) -> None:
    await rig.agent(leaf).connect(time.time_ns() // 1_000_000, "process-1")
    await connected(operator)
    agent = HonestAgent(rig, tmp_path / "site", leaf, clock_ahead_us=ahead_us)
    before = clones_suspected()

    await agent.start()
    await connected(operator)
    assert len(refusals(rig)) == 1

    newer = rig.agent_ca.agent("battery")  # a renewal is another connection of the process
    asset = rig.asset("battery", leaf)
    asset.identity.next.CopyFrom(newer.known)
    await operator.accepted(await operator.say(asset=asset))
    agent.mount(newer)
    while (await connected(operator)).serial_number != newer.known.serial_number:
        pass
    assert len(refusals(rig)) == 1

    await agent.stop()
    await agent.start()
    await connected(operator)
    await agent.stop()
    assert (len(refusals(rig)) <= 2, clones_suspected()) == (True, before)


async def test_a_gateway_that_is_an_hour_slow_serves_an_agent_that_is_right(
    rig: Rig, leaf: Leaf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.stop()
    slow = "derops_headend.gateway.server._now_us"
    with monkeypatch.context() as patch:
        patch.setattr(slow, lambda: time.time_ns() // 1000 - 3600 * SECOND_US)
        patch.setattr("tests.headend.gateway.rig.now_us", lambda: 1)
        await rig.start()
    operator = rig.operator()
    await operator.snapshot([rig.asset("battery", leaf)])
    agent = HonestAgent(rig, tmp_path / "site", leaf)

    for _ in range(3):
        await agent.start()
        await connected(operator)
        await agent.stop()

    assert set(refusals(rig)) == {"EpochTooHigh"}
    assert len(refusals(rig)) <= 3


async def test_a_clock_of_the_gateway_that_is_set_back_locks_nobody_out(
    rig: Rig, leaf: Leaf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await rig.stop()
    behind_us = [0]
    with monkeypatch.context() as patch:
        patch.setattr(
            "derops_headend.gateway.server._now_us",
            lambda: time.time_ns() // 1000 - behind_us[0],
        )
        await rig.start()
    operator = rig.operator()
    await operator.snapshot([rig.asset("battery", leaf)])
    agent = HonestAgent(rig, tmp_path / "site", leaf)
    await agent.start()
    await connected(operator)
    await agent.stop()
    behind_us[0] = 1800 * SECOND_US

    await agent.start()

    await connected(operator)
    await agent.stop()
    assert refusals(rig) == ["EpochTooHigh"]


async def test_a_restored_disk_connects(
    rig: Rig, leaf: Leaf, operator: Operator, tmp_path: Path
) -> None:
    agent = HonestAgent(rig, tmp_path / "site", leaf)
    await agent.start()
    await connected(operator)
    await agent.stop()
    for file in (tmp_path / "site").glob("ledger.db*"):
        file.unlink()
    agent.clock.wall_us -= 7 * 86_400 * SECOND_US

    await agent.start()
    await connected(operator)
    await agent.stop()

    assert refusals(rig) == ["EpochTooLow"]


@pytest.mark.parametrize("stored", [2**62, 2**63 - 1])
async def test_an_epoch_of_before_an_upgrade_comes_down(
    rig: Rig, leaf: Leaf, operator: Operator, tmp_path: Path, stored: int
) -> None:
    agent = HonestAgent(rig, tmp_path / "site", leaf)
    await agent.start()
    await connected(operator)
    await agent.stop()
    with sqlite3.connect(tmp_path / "site" / "ledger.db") as database:
        database.execute("UPDATE meta SET epoch = ?", [stored])
    database.close()

    await agent.start()
    session = await connected(operator)
    await agent.stop()

    assert session.epoch < time.time_ns() // 1_000_000 + 300_000
    assert refusals(rig) == ["EpochTooHigh"]


async def test_renewals_one_after_the_other_leave_no_gap(
    rig: Rig, leaf: Leaf, operator: Operator, tmp_path: Path
) -> None:
    agent, current, before = HonestAgent(rig, tmp_path / "site", leaf), leaf, clones_suspected()
    await agent.start()
    await connected(operator)
    for _ in range(5):
        newer = rig.agent_ca.agent("battery")
        asset = rig.asset("battery", current)
        asset.identity.next.CopyFrom(newer.known)
        await operator.accepted(await operator.say(asset=asset))
        agent.mount(newer)
        while True:  # told of each change: a gap would show as a session that is not connected
            session = await operator.read_until("session")
            assert session.connected
            if session.serial_number == newer.known.serial_number:
                break
        current = newer
        promoted = rig.asset("battery", current)
        await operator.accepted(await operator.say(asset=promoted))
    with suppress(TimeoutError):
        async with asyncio.timeout(0.1):
            assert (await operator.read_until("session")).connected
    await agent.stop()

    assert (refusals(rig), clones_suspected()) == ([], before)
