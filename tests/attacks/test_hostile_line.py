"""The attacker is a device on Modbus TCP, or who gives orders to one that does not answer.

On real TCP against the agent's own drivers. What each must not reach is a neighbour: an asset
behind the same gateway, or on another line of the same agent.
"""

import asyncio
import struct
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise

import pytest
from pymodbus.constants import ExcCodes
from tests.agent.fakes import FakeClock
from tests.agent.lines import Answer
from tests.agent.modbus.test_shared_line import (
    PERIOD_SECONDS,
    opened,
    sampled,
    units,
)
from tests.agent.serial_gateway import SerialGateway
from tests.waiting import now

from derops.errors import (
    DeviceError,
    DeviceRefusedError,
    DeviceTimeoutError,
    DeviceUnreachableError,
)
from derops_agent.drivers.modbus_tcp import Table, take_unit
from derops_agent.drivers.sunspec import open_sunspec
from derops_agent.drivers.units import UnitOptions
from derops_agent.ports import Setpoints

MARKER = list(struct.unpack(">HH", b"SunS"))
BASE = 40000


@dataclass
class Map:
    """A SunSpec map whose models, by its registers behind the marker, are what is attacked with."""

    models: list[int]
    """What is repeated up to the last register."""

    asked: int = 0

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer:
        self.asked += 1
        if address < BASE:
            return ExcCodes.ILLEGAL_ADDRESS
        return [self._word(each - BASE) for each in range(address, address + count)]

    def _word(self, at: int) -> int:
        return MARKER[at] if at < 2 else self.models[(at - 2) % len(self.models)]


ENDLESS = [
    pytest.param([1, 0], 3 + 200, id="M1 models without registers, one after another"),
    pytest.param([103, 65535], 3 + 2, id="M2 a model up to beyond the last register"),
    pytest.param([64_000, 1, 0], 3 + 200, id="M3 ever the same model of a vendor"),
]


@pytest.mark.parametrize(("models", "most"), ENDLESS)
async def test_a_map_without_an_end_is_given_up(models: list[int], most: int) -> None:
    """A device has a SunSpec map that never ends: it is asked for a bounded part of it."""
    device = Map(models)
    async with SerialGateway({1: device}) as gateway:
        host, port = gateway.address
        with pytest.raises(DeviceRefusedError, match=r"does not end by register \d+"):
            await open_sunspec({"host": host, "port": port}, FakeClock())

    assert device.asked <= most


async def _flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    message = struct.pack(">HHHB", 7, 0, 3, 1) + b"\x84\x02"  # an answer to another function
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        await reader.readexactly(12)
        while True:
            writer.write(1_000 * message)
            await writer.drain()
            await asyncio.sleep(0)
    writer.transport.abort()


async def test_messages_without_end_end_the_connection() -> None:
    """M4: a device sends small messages without end; they cost the agent no more than a moment."""
    server = await asyncio.start_server(_flood, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    unit = take_unit(
        UnitOptions.model_validate({"host": "127.0.0.1", "port": port, "timeoutSeconds": 2})
    )
    async with opened(SerialGateway(units(1))) as neighbours, sampled(neighbours) as samplings:
        began = now()
        with pytest.raises(DeviceTimeoutError, match="messages that answer nothing"):
            await unit.read(0, 1)
        seconds = now() - began
        await asyncio.sleep(1)
        taken = [at for at in samplings[0].at_seconds if at >= began]
    await unit.close()
    server.close()
    await server.wait_closed()

    assert seconds < 1, "it is not heard on for the whole time-out"
    assert len(taken) >= 0.8 * (seconds + 1) / PERIOD_SECONDS


async def test_orders_that_change_faster_than_a_dead_unit_is_tried() -> None:
    """M5: somebody gives a dead unit another power twenty times a second.

    Its neighbour keeps its rate.
    """
    gateway = SerialGateway(units(2))
    seconds = 8.0
    async with opened(gateway) as devices, sampled(devices[:1]) as samplings:
        gateway.silent = {2}
        for _ in range(3):
            await devices[1].sample()
        began = now()
        watts = 0
        while now() < began + seconds:
            watts += 100
            with pytest.raises(DeviceUnreachableError):
                await devices[1].write(Setpoints(active_power_watts=watts % 9000))
            await asyncio.sleep(0.05)
        tries = len(gateway.asked(2, began))
        taken = [at for at in samplings[0].at_seconds if at >= began]

    assert tries <= seconds + 3, "two at once, and one a second"
    assert len(taken) >= 0.8 * seconds / PERIOD_SECONDS


async def test_a_slow_unit_that_is_written_without_a_pause() -> None:
    """M6: somebody has a slow unit written without a pause, and what is due goes first.

    After a while it goes first no more, and its neighbour is measured as if nothing was due.
    """
    gateway = SerialGateway(units(2), busy_seconds={2: 0.75})
    async with opened(gateway, timeoutSeconds=1.0) as devices, sampled(devices[:1]) as samplings:
        began, watts = now(), 0
        while now() < began + 20:
            watts += 100
            with suppress(DeviceError):
                await devices[1].write(Setpoints(active_power_watts=watts % 9000))
        taken = [at for at in samplings[0].at_seconds if at >= began + 10]

    assert gateway.units[2].written, "it does take time"  # type: ignore[attr-defined]
    assert len(taken) >= 4, "it takes three questions"
    assert max(b - a for a, b in pairwise([began + 10, *taken, began + 20])) < 5


async def test_a_unit_that_answers_every_other_question() -> None:
    """M7: a unit answers and is silent in turns, so that it is never backed off.

    Its neighbour keeps most of its rate.
    """
    gateway = SerialGateway(units(2))
    async with opened(gateway) as devices, sampled(devices) as samplings:
        began = now()
        while now() < began + 6:
            gateway.silent ^= {2}
            heard = len(gateway.asked(2))
            while len(gateway.asked(2)) == heard and now() < began + 6:
                await asyncio.sleep(0.005)
        taken = [at for at in samplings[0].at_seconds if at >= began]

    assert len(taken) >= 0.6 * 6 / PERIOD_SECONDS
