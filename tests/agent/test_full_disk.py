"""A real agent process that is started while its disk takes nothing."""

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from tests.agent.fakes import asset, order
from tests.agent.gateway import SERVER_NAME, Gateway, Stream, serve
from tests.agent.lines import GoLine
from tests.agent.modbus.registers import charger
from tests.agent.modbus.test_device import PROFILES
from tests.faults.ground import filled, small_disk
from tests.pki import Authority
from tests.stack import places
from tests.waiting import until

from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, dispatch_pb2

LIMIT, FREE = 6, 32
"""Amperes per phase in the register of the charger: with the dispatch, and at its fallback."""


class Agent:
    """The program, on a disk of its own, with one charger or two."""

    def __init__(self, folder: Path, disk: Path, gateway_port: int, ports: list[int]) -> None:
        self._file = folder / "agent.json"
        self._ops_port = places.free_port()
        self._document: dict[str, Any] = {
            "gateways": [f"127.0.0.1:{gateway_port}"],
            "serverName": SERVER_NAME,
            "serverCAFile": str(folder / "ca.crt"),
            "dataDirectory": str(disk / "data"),
            "opsPort": self._ops_port,
        }
        self._folder, self._ports = folder, ports

    @asynccontextmanager
    async def running(self, assets: int, end: signal.Signals) -> AsyncIterator[None]:
        """Run it until the block ends; it must live until then."""
        document = self._document | {"assets": [self._asset(number) for number in range(assets)]}
        self._file.write_text(json.dumps(document))
        program = str(Path(sys.executable).parent / "derops-agent")
        process = await asyncio.create_subprocess_exec(program, "--config", str(self._file))
        try:
            yield
            assert process.returncode is None, "it ended by itself"
        finally:
            if process.returncode is None:
                process.send_signal(end)
            await process.wait()

    async def says(self, *words: str) -> bool:
        """Ask ``/readyz``, and tell whether the answer has all of ``words``."""
        text = await asyncio.to_thread(self._ask)
        return all(each in text for each in words)

    def _ask(self) -> str:
        try:
            with urlopen(f"http://127.0.0.1:{self._ops_port}/readyz") as answer:
                return str(answer.read(), "utf-8")
        except HTTPError as error:
            return str(error.read(), "utf-8")

    def _asset(self, number: int) -> dict[str, Any]:
        return {
            "namespace": "ns",
            "name": f"charger-{number}",
            "certificateDirectory": str(self._folder / "certificates"),
            "driver": {
                "kind": "modbus",
                "host": "127.0.0.1",
                "port": self._ports[number],
                "profile": str(PROFILES / "ev-charger.yaml"),
            },
        }


async def welcomed(
    gateway: Gateway, counter: int, *orders: Any, heartbeat_seconds: int = 60
) -> Stream:
    stream = await gateway.next_stream()
    await stream.welcome(heartbeat_seconds, now_us=time.time_ns() // 1000)
    config = asset(
        id=dispatch_pb2.AssetId(uid="asset-1", namespace="ns", name="charger-0"),
        type="EVCharger",
        fallback_active_power_watts=None,
        limit_max_injection_watts=0,
        limit_max_absorption_watts=22_080,
    )
    await stream.snapshot(config, *orders, counter=counter)
    return stream


async def give_no_credit(stream: Stream) -> None:
    """Speak once a second, so that the agent stays, and let no telemetry come."""
    while True:
        await stream.send(credit=agent_pb2.TelemetryCredit())
        await asyncio.sleep(1)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
async def test_an_agent_that_starts_on_a_full_disk_looks_after_its_device_and_goes_on_later(
    tmp_path: Path, end: signal.Signals
) -> None:
    server_ca, agent_ca = Authority("server"), Authority("agent")
    (tmp_path / "ca.crt").write_bytes(server_ca.pem)
    agent_ca.agent("charger").write(tmp_path / "certificates")
    first, second = charger(), charger()
    now_us = time.time_ns() // 1000
    limit = order(
        mode="LoadLimit", watts=4200, start_us=now_us, duration_seconds=600, created_us=now_us
    )
    with small_disk(tmp_path) as disk:
        async with (
            serve(server_ca, agent_ca) as gateway,
            GoLine({1: first}) as line,
            GoLine({1: second}) as other,
        ):
            agent = Agent(tmp_path, disk, gateway.port, [line.address[1], other.address[1]])
            async with agent.running(1, end):
                stream = await welcomed(gateway, 1, limit)
                await stream.until("report", lambda r: r.phase == "Active")
            assert first.holding[1000] == LIMIT

            with filled(disk):
                async with agent.running(2, end):
                    await until(lambda: first.holding[1000] == FREE)
                    assert await agent.says(
                        "degraded ledger of ns/charger-0: database or disk is full",
                        "waiting for ledger of ns/charger-1",
                    )
                    stream = await welcomed(gateway, 2, limit)
                    assert first.holding[1000] == FREE

                    (disk / "filler").unlink()

                    await until(lambda: first.holding[1000] == LIMIT)
                    await stream.until("report", lambda r: r.interruptions == 1)
                    await gateway.next_stream()
                    assert await agent.says("ok")


async def test_heartbeats_say_that_the_disk_is_full_and_when_it_is_no_more(tmp_path: Path) -> None:
    server_ca, agent_ca = Authority("server"), Authority("agent")
    (tmp_path / "ca.crt").write_bytes(server_ca.pem)
    agent_ca.agent("charger").write(tmp_path / "certificates")
    with small_disk(tmp_path) as disk:
        async with serve(server_ca, agent_ca) as gateway, GoLine({1: charger()}) as line:
            agent = Agent(tmp_path, disk, gateway.port, [line.address[1]])
            async with agent.running(1, signal.SIGTERM):
                stream = await welcomed(gateway, 1, heartbeat_seconds=1)
                speaking = asyncio.create_task(give_no_credit(stream))
                await stream.until("heartbeat", lambda beat: beat.telemetry.waiting_samples > 1)
                with filled(disk):
                    begun_us = time.time_ns() // 1000
                    full = await stream.until("heartbeat", lambda beat: beat.telemetry.problem)
                mended = await stream.until(
                    "heartbeat",
                    lambda beat: (
                        beat.agent_sent_us > full.agent_sent_us and not beat.telemetry.problem
                    ),
                )
                speaking.cancel()

    told = full.telemetry
    assert told.problem == "database or disk is full"
    assert begun_us - SECOND_US < told.problem_since_us <= full.agent_sent_us
    assert full.agent_sent_us - told.sampled_us < 5 * SECOND_US, "sampling goes on"
    assert mended.telemetry.waiting_samples > told.waiting_samples
    assert mended.telemetry.oldest_waiting_us == told.oldest_waiting_us, "nothing was lost"
