"""A thief of a key who uses another gateway than the true agent: the operator tells them."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.headend.gateway.conftest import _no_pace
from tests.headend.gateway.rig import Agent, Rig, now_ms, refusal_of
from tests.pki import Leaf
from tests.waiting import until

from derops.observability import Readiness
from derops_operator.gateways.desired import Desired
from derops_operator.gateways.replicas import Fleet
from derops_operator.gateways.sync import GatewaySync
from derops_operator.settings import OperatorSettings

__all__ = ["_no_pace"]


class Pair:
    """Two real gateways, and the operator's real end of both streams."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rigs: list[Rig] = []
        self.fleet = Fleet(time.time_ns() // 1000)
        self.desired = Desired(operator_start_ms=now_ms())
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        for name in ("one", "two"):
            (self.folder / name).mkdir()
            rig = Rig(self.folder / name)
            if self.rigs:
                rig.join(self.rigs[0])
            rig.replica = name
            await rig.start()
            self.rigs.append(rig)
        tls = self.folder / "control"
        tls.mkdir()
        leaf = self.rigs[0].operator_leaf
        (tls / "tls.key").write_bytes(leaf.key)
        (tls / "tls.crt").write_bytes(leaf.pem)
        (tls / "ca.crt").write_bytes(self.rigs[0].control_ca.pem)

    async def start_operator(self) -> None:
        """Start a new operator, which remembers nothing, with the same desired state."""
        await self.stop_operator()
        self.fleet = Fleet(time.time_ns() // 1000)
        ports = [rig.gateway.control_port for rig in self.rigs if rig.gateway is not None]
        settings = OperatorSettings(
            gateways=tuple(f"127.0.0.1:{port}" for port in ports),
            control_tls_directory=self.folder / "control",
            server_ca_file=self.folder / "control" / "ca.crt",
            trust_domain="derops.test",
        )
        sync = GatewaySync(
            settings,
            self.desired,
            self.fleet,
            Readiness(),
            lambda _: None,
            lambda: None,
            lambda _: None,
        )
        self._task = asyncio.create_task(sync.run())
        replicas = self.fleet.replicas
        await until(
            lambda: len(replicas) == 2 and all(each.synced_us for each in replicas.values())
        )

    async def stop_operator(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def stop(self) -> None:
        await self.stop_operator()
        for rig in self.rigs:
            await rig.stop()


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    pair = Pair(tmp_path)
    await pair.start()
    yield pair
    await pair.stop()


@pytest.fixture
async def stolen(pair: Pair) -> Leaf:
    rig = pair.rigs[0]
    leaf = rig.agent_ca.agent("battery")
    pair.desired.put_asset(rig.asset("battery", leaf))
    await pair.start_operator()
    return leaf


async def until_known(rig: Rig) -> None:
    """Wait until a gateway knows that an instance was replaced."""
    assert rig.gateway is not None
    sessions = rig.gateway.exchange.sessions
    await until(lambda: any(i.replaced_us for i in sessions.memory("uid-battery").instances))


@pytest.mark.parametrize("returns_to", [0, 1])
async def test_a_takeover_at_one_gateway_is_known_at_the_other(
    pair: Pair, stolen: Leaf, returns_to: int
) -> None:
    """K11: a thief uses the other gateway; the true agent's return to either is told."""
    one, two = pair.rigs
    true = one.agent(stolen)
    await true.connect(now_ms(), "true")
    await two.agent(stolen).connect(now_ms() + 1, "thief")
    assert (await true.read_until("bye")).reason == "Superseded"
    await until_known(pair.rigs[returns_to])

    back = pair.rigs[returns_to].agent(stolen)
    assert await refusal_of(back, now_ms() + 2, "true") == "CloneSuspected"

    now_us = time.time_ns() // 1000
    await until(lambda: pair.fleet.session("uid-battery", now_us).suspected_us)


async def test_a_new_operator_and_a_gateway_with_a_new_disk_are_told_by_the_others(
    pair: Pair, stolen: Leaf
) -> None:
    """K12: operator and one gateway lose their memory between takeover and return."""
    one, two = pair.rigs
    await one.agent(stolen).connect(now_ms(), "true")
    await one.agent(stolen).connect(now_ms() + 1, "thief")
    await until_known(two)
    await two.stop()
    for file in two.directory.glob("desired.db*"):
        file.unlink()
    await two.start()
    await pair.start_operator()
    await until_known(two)

    assert await refusal_of(two.agent(stolen), now_ms() + 2, "true") == "CloneSuspected"


async def test_an_older_key_is_too_old_at_the_other_gateway_as_well(
    pair: Pair, stolen: Leaf
) -> None:
    """K13: a thief of the key before the last uses the gateway that never saw the newer one."""
    one, two = pair.rigs
    newer = one.agent_ca.agent("battery")
    asset = one.asset("battery", newer)
    asset.identity.previous.CopyFrom(stolen.known)
    asset.identity.previous.accepted_until_us = 2**62
    pair.desired.put_asset(asset)
    await until(lambda: pair.fleet.accepted_version() >= pair.desired.version)
    thief = two.agent(stolen)
    await thief.connect(now_ms() + 200_000, "thief")

    await one.agent(newer).connect(now_ms(), "true")

    assert (await thief.read_until("bye")).reason == "Superseded"
    back = await refusal_of(two.agent(stolen), now_ms() + 299_000, "thief-2")
    assert back == "CertificateSuperseded"


async def test_an_agent_that_goes_from_gateway_to_gateway_is_no_clone(
    pair: Pair, stolen: Leaf
) -> None:
    one, two = pair.rigs
    ends: list[Agent] = []
    await one.agent(stolen).connect(now_ms(), "crashed")
    for number in range(1, 7):
        agent = pair.rigs[number % 2].agent(stolen)
        await agent.connect(now_ms() + number, "process")
        ends.append(agent)
        await until(lambda: newest_epoch(pair) == newest_here(pair.rigs[number % 2]))  # noqa: B023

    for agent in ends[:-1]:
        assert (await agent.read_until("bye")).reason == "Superseded"
    for rig in (one, two):
        assert rig.gateway is not None
        assert not rig.gateway.exchange.sessions.suspected_us("uid-battery")


def newest_epoch(pair: Pair) -> int:
    return max((each.epoch for each in pair.fleet.all_seen()), default=0)


def newest_here(rig: Rig) -> int:
    assert rig.gateway is not None
    last = rig.gateway.exchange.sessions.last("uid-battery")
    return last.epoch if last is not None else 0
