"""The whole agent with two assets behind one Modbus gateway, of which one unit is dead."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.agent.fakes import LoopClock, S, asset, order
from tests.agent.gateway import SERVER_NAME, Gateway, Stream, serve
from tests.agent.modbus.registers import battery
from tests.agent.modbus.test_device import PROFILES
from tests.agent.serial_gateway import SerialGateway
from tests.pki import Authority
from tests.waiting import now, until

from derops.wire.v1 import dispatch_pb2
from derops_agent.clock import Clock
from derops_agent.host import Host
from derops_agent.settings import AgentSettings

ON, OFF = 2, 0
"""What the battery's register 201 says of an active power."""


@asynccontextmanager
async def hosted(folder: Path, line: SerialGateway, clock: Clock) -> AsyncIterator[Gateway]:
    """Run an agent with an asset for each unit of a line, until the block ends."""
    server_ca, agent_ca = Authority("server"), Authority("agent")
    (folder / "ca.crt").write_bytes(server_ca.pem)
    agent_ca.agent("battery").write(folder / "certificates")
    host, port = line.address
    async with serve(server_ca, agent_ca) as gateway:
        document = {
            "gateways": [f"127.0.0.1:{gateway.port}"],
            "serverName": SERVER_NAME,
            "serverCAFile": folder / "ca.crt",
            "dataDirectory": folder / "data",
            "assets": [
                {
                    "namespace": "ns",
                    "name": f"unit-{unit_id}",
                    "certificateDirectory": folder / "certificates",
                    "driver": {
                        "kind": "modbus",
                        "host": host,
                        "port": port,
                        "unitId": unit_id,
                        "profile": str(PROFILES / "battery.yaml"),
                    },
                }
                for unit_id in line.units
            ],
        }
        agent = Host(AgentSettings.model_validate(document), clock)
        running = asyncio.create_task(agent.run())
        yield gateway
        os.kill(os.getpid(), signal.SIGTERM)
        await running


async def welcomed(stream: Stream, clock: Clock, number: int, *orders: Any) -> None:
    await stream.welcome(now_us=clock.now_us())
    name = dispatch_pb2.AssetId(uid="asset-1", namespace="ns", name=f"unit-{number}")
    await stream.snapshot(asset(id=name), *orders)


def soon(clock: Clock, uid: str, seconds: float, duration_seconds: int) -> Any:
    now_us = clock.now_us()
    start_us = now_us + round(seconds * S)
    return order(uid, start_us=start_us, duration_seconds=duration_seconds, created_us=now_us)


@pytest.mark.parametrize("free_seconds", [0.0, 3.0])
async def test_a_dispatch_runs_on_time_and_samples_flow_beside_a_dead_unit(
    tmp_path: Path, free_seconds: float
) -> None:
    units, clock = {1: battery(), 2: battery()}, LoopClock()
    async with (
        SerialGateway(units, silent={2}, free_seconds=free_seconds) as line,
        hosted(tmp_path, line, clock) as gateway,
    ):
        stream = await gateway.next_stream()
        begin = soon(clock, "d1", 3, duration_seconds=8)
        await welcomed(stream, clock, 1, begin)
        report = await stream.until("report", lambda r: r.phase == "Active")
        ended = await stream.until("report", lambda r: r.phase == "Complete")
        samples = [
            each for each in line.asked(1) if not each.is_write and each.at_seconds > now() - 8
        ]

        line.silent = set()
        back = await gateway.next_stream(40)
        await welcomed(back, clock, 2)
        asked = len(line.asked(2))
        await until(lambda: len(line.asked(2)) > asked + 3)

    assert report.applied_us - begin.start_us < 1_500_000, "a try of the dead unit takes 1 s"
    assert ended.reason == "WindowEnded"
    assert len(samples) >= 8
    assert line.connections == 1


async def test_an_order_on_a_dead_unit_starts_when_it_is_back_and_harms_no_neighbour(
    tmp_path: Path,
) -> None:
    units, clock = {1: battery(), 2: battery()}, LoopClock()
    units[1].holding[100] = 90  # of which the Hello tells
    async with SerialGateway(units) as line, hosted(tmp_path, line, clock) as gateway:
        streams = [await gateway.next_stream(), await gateway.next_stream()]
        streams.sort(key=lambda each: each.received[0].hello.capability.max_injection_watts)
        for number, stream in enumerate(streams, 1):
            await welcomed(stream, clock, number)
        asked = len(line.asked(2))
        await until(lambda: len(line.asked(2)) > asked)
        line.silent = {2}
        await asyncio.sleep(4)  # two samples are missed by then
        began = now()
        for stream in streams:
            await stream.send(dispatch=soon(clock, "d1", 2, duration_seconds=20))
        await until(lambda: units[1].holding[201] == ON)
        late_seconds = now() - began - 2
        await asyncio.sleep(5)
        tries = [each.at_seconds for each in line.asked(2, began + 1.9)]
        line.silent = set()
        back = now()
        await until(lambda: units[2].holding[201] == ON)
        back_seconds = now() - back
        for stream in streams:
            await stream.until("report", lambda r: r.phase == "Active")

    assert late_seconds < 2.1
    assert back_seconds < 4
    assert len(tries) >= 2, "it was tried"
    assert len(tries) <= 8
