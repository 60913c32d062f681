"""Units behind one gateway on real TCP: a dead one costs its neighbours next to nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, cast

import pytest
from structlog.testing import capture_logs
from tests.agent.fakes import FakeClock
from tests.agent.modbus.registers import Registers, battery
from tests.agent.modbus.test_device import PROFILES
from tests.agent.serial_gateway import SerialGateway
from tests.waiting import now, until

from derops.errors import DeviceError, DeviceTimeoutError, DeviceUnreachableError
from derops.wire.v1 import agent_pb2
from derops_agent.asset.device import GuardedDevice
from derops_agent.drivers.modbus import open_modbus
from derops_agent.drivers.modbus_turns import NO_TURN
from derops_agent.ports import Setpoints

Q = agent_pb2.Quantity
TIMEOUT_SECONDS = 0.2
PERIOD_SECONDS = 0.2
WANTED = Setpoints(active_power_watts=5000)


def units(count: int) -> dict[int, Registers]:
    """Return batteries that are charged to as many percent as their unit id."""
    found = {number: battery() for number in range(1, count + 1)}
    for number, registers in found.items():
        registers.input[2] = 10 * number
    return found


async def open_unit(gateway: SerialGateway, unit_id: int, **options: Any) -> GuardedDevice:
    host, port = gateway.address
    facts = {"host": host, "port": port, "unitId": unit_id, "timeoutSeconds": TIMEOUT_SECONDS}
    profile = {"profile": str(PROFILES / "battery.yaml")}
    return GuardedDevice(await open_modbus(facts | profile | options, FakeClock()))


@asynccontextmanager
async def opened(gateway: SerialGateway, **options: Any) -> AsyncIterator[list[GuardedDevice]]:
    """Open all units of a gateway."""
    async with gateway, AsyncExitStack() as stack:
        devices = []
        for unit_id in gateway.units:
            devices.append(await open_unit(gateway, unit_id, **options))
            stack.push_async_callback(devices[-1].close)
        yield devices


@dataclass
class Sampling:
    """What became of a unit that is measured at a constant pace."""

    device: GuardedDevice
    period_seconds: float = PERIOD_SECONDS
    at_seconds: list[float] = field(default_factory=list)
    charges: set[float] = field(default_factory=set)

    async def until_after(self, seconds: float, patience_seconds: float) -> None:
        await until(lambda: any(at > seconds for at in self.at_seconds), patience_seconds)

    async def run(self) -> None:
        due = now()
        while True:
            await asyncio.sleep(max(0.0, due - now()))
            due = max(due + self.period_seconds, now())
            reading = await self.device.sample()
            if reading is not None:
                self.at_seconds.append(now())
                self.charges.add(reading.values.get(Q.STATE_OF_CHARGE_PERCENT, -1))


@asynccontextmanager
async def sampled(devices: list[GuardedDevice]) -> AsyncIterator[list[Sampling]]:
    samplings = [Sampling(device) for device in devices]
    tasks = [asyncio.create_task(each.run()) for each in samplings]
    yield samplings
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.parametrize("free_seconds", [0.0, 3.0])
@pytest.mark.parametrize("count", [2, 8])
async def test_neighbours_of_dead_units_keep_their_rate_and_write_on_time(
    count: int, free_seconds: float
) -> None:
    gateway = SerialGateway(units(count), free_seconds=free_seconds)
    seconds = 6.0
    async with opened(gateway) as devices, sampled(devices) as samplings:
        await until(lambda: len(samplings[0].at_seconds) > 1)
        gateway.silent = set(range(2, count + 1))
        await until(lambda: bool(gateway.silent & {r.unit_id for r in gateway.requests}))
        await asyncio.sleep(count * TIMEOUT_SECONDS)
        began, before = now(), list[list[int]]()
        while now() < began + seconds:
            asked = len(gateway.requests)
            await devices[0].write(WANTED)
            before.append(gateway.before_a_write(1, asked))
            await asyncio.sleep(0.5)
        taken = [at for at in samplings[0].at_seconds if at >= began]
        tries = sum(len(gateway.asked(unit_id, began)) for unit_id in gateway.silent)

    assert max(len(dead) for dead in before) <= 2, f"who went before the writes: {before}"
    assert len(taken) >= 0.9 * seconds / PERIOD_SECONDS
    assert samplings[0].charges == {1}
    assert gateway.connections == 1
    assert gateway.refused == 0
    assert tries * TIMEOUT_SECONDS <= 0.25 * seconds + (count + 1) * TIMEOUT_SECONDS


async def test_a_unit_that_is_switched_on_again_is_noticed() -> None:
    gateway = SerialGateway(units(2))
    async with opened(gateway) as devices, sampled(devices) as samplings:
        gateway.silent = {2}
        await asyncio.sleep(2)
        gateway.silent = set()
        back = now()
        # Backed off for 1, 2 and 4 s by then.
        await until(lambda: any(at > back for at in samplings[1].at_seconds), patience_seconds=5)
        first = next(at for at in samplings[1].at_seconds if at > back)
        await asyncio.sleep(1)
        after = [at for at in samplings[1].at_seconds if at > first]

    assert len(after) >= 0.8 / PERIOD_SECONDS


async def test_a_unit_that_is_backed_off_says_so_and_since_when() -> None:
    gateway = SerialGateway(units(2))
    async with opened(gateway) as devices:
        gateway.silent = {2}
        for _ in range(2):
            assert await devices[1].sample() is None
        asked = len(gateway.requests)
        with pytest.raises(DeviceTimeoutError, match=r"unit 2.*silent since .* UTC, backed off$"):
            await devices[1]._device.sample()

    assert len(gateway.requests) == asked


async def test_a_gateway_whose_only_socket_is_taken_is_told_as_that() -> None:
    gateway = SerialGateway(units(1))
    async with opened(gateway) as devices:
        other = await asyncio.open_connection(*gateway.address)
        gateway.has_one_socket = True
        cast("Any", devices[0]._device)._unit._bus.close()
        await until(lambda: len(gateway._writers) == 1)
        told = set()
        for _ in range(4):
            with pytest.raises(DeviceTimeoutError) as failed:
                await devices[0]._device.sample()
            told.add(str(failed.value).partition(f"{gateway.address}: ")[2])
        other[1].close()

    assert told == {
        words := "the connection was closed before anything was answered; some devices take one "
        "client at a time",
        f"no connection; {words}",
    }


async def test_a_unit_without_neighbours_is_asked_whenever_it_is_wanted() -> None:
    gateway = SerialGateway(units(1))
    async with opened(gateway) as devices:
        gateway.silent = {1}
        for _ in range(5):
            assert await devices[0].sample() is None
        gateway.silent = set()
        assert await devices[0].sample() is not None


async def test_what_is_due_on_a_dead_unit_is_tried_at_once_and_then_once_a_second() -> None:
    gateway = SerialGateway(units(2))
    async with opened(gateway) as devices, sampled(devices[:1]) as samplings:
        gateway.silent = {2}
        for _ in range(3):
            await devices[1].sample()
        began = now()
        while now() < began + 4.5:
            with pytest.raises(DeviceUnreachableError):
                await devices[1].write(WANTED)
            await asyncio.sleep(0.05)
        tries = [request.at_seconds - began for request in gateway.asked(2, began)]
        changed = now()
        with pytest.raises(DeviceUnreachableError):
            await devices[1].write(Setpoints())
        at_once = gateway.asked(2, changed)
        gateway.silent = set()
        async with asyncio.timeout(3):
            while not await _wrote(devices[1]):
                await asyncio.sleep(0.05)

    assert tries[0] < 0.1, "at once"
    assert len(tries) == 5
    assert all(b - a > 0.95 for a, b in pairwise(tries))
    assert len(at_once) == 1, "an end is due anew"
    assert len(samplings[0].at_seconds) >= 0.9 * 4.5 / PERIOD_SECONDS
    assert gateway.units[2].holding[200] == 0x10000 - 500  # type: ignore[attr-defined]


async def _wrote(device: GuardedDevice) -> bool:
    try:
        await device.write(WANTED)
    except DeviceError:
        return False
    return True


async def test_orders_on_two_units_of_one_line_are_both_carried_out() -> None:
    gateway = SerialGateway(units(3), silent={3})
    gateway.silent = set()
    async with opened(gateway) as devices, sampled(devices):
        gateway.silent = {3}
        await asyncio.gather(*(device.write(WANTED) for device in devices[:2]))
        held = [await device.read_setpoints() for device in devices[:2]]

    assert held == [WANTED, WANTED]


async def test_a_late_answer_is_nobody_elses_and_ends_no_connection() -> None:
    gateway = SerialGateway(units(2), free_seconds=3)
    async with opened(gateway) as devices, sampled(devices) as samplings:
        gateway.late_seconds = {2: 1.5 * TIMEOUT_SECONDS}
        began = now()
        await asyncio.sleep(4)
        taken = [at for at in samplings[0].at_seconds if at >= began]

    assert samplings[0].charges == {1}
    assert samplings[1].charges <= {2}
    assert gateway.connections == 1
    assert len(taken) >= 0.8 * 4 / PERIOD_SECONDS


def swapped(number: int) -> int:
    return int.from_bytes(number.to_bytes(2), "little")


@pytest.mark.parametrize(
    "number",
    [lambda _: 0, lambda _: 1, lambda n: n + 1 & 0xFFFF, lambda n: n - 1 & 0xFFFF, swapped],
)
async def test_with_wrong_transaction_ids_a_late_answer_is_nobody_elses(
    number: Callable[[int], int],
) -> None:
    gateway = SerialGateway(units(2), number=number)
    async with gateway:
        devices = [await _open_when_it_goes(gateway, unit_id) for unit_id in (1, 2)]
        async with sampled(devices) as samplings:
            for seconds in (1.5, 0.5, 1.0):
                gateway.late_seconds = {2: seconds * TIMEOUT_SECONDS}
                await asyncio.sleep(1)
        for device in devices:
            await device.close()

    assert samplings[0].charges == {1}
    assert samplings[1].charges <= {2}
    assert len(samplings[0].at_seconds) >= 5


async def _open_when_it_goes(gateway: SerialGateway, unit_id: int) -> GuardedDevice:
    for _ in range(3):
        with suppress(DeviceTimeoutError):
            return await open_unit(gateway, unit_id)
    raise AssertionError(f"unit {unit_id} did not open")


async def test_a_line_that_is_half_open_is_dialled_again() -> None:
    gateway = SerialGateway(units(2))
    async with opened(gateway) as devices, sampled(devices) as samplings:
        gateway.swallows = True
        await until(lambda: gateway.connections > 1, patience_seconds=8)
        gateway.swallows = False
        back = now()
        for sampling in samplings:
            await sampling.until_after(back, 8)


async def test_a_gateway_that_is_away_is_dialled_now_and_then() -> None:
    gateway = SerialGateway(units(2))
    async with opened(gateway) as devices, sampled(devices) as samplings:
        await gateway.stop()
        await asyncio.sleep(2.5)
        await gateway.start()
        back = now()
        for sampling in samplings:
            await sampling.until_after(back, 5)

    assert gateway.connections == 2


async def test_a_gateway_that_is_slow_to_free_its_socket_gets_its_time() -> None:
    gateway = SerialGateway(units(2), free_seconds=3)
    async with opened(gateway) as devices, sampled(devices) as samplings:
        gateway.hangs_up_on = {2}
        await until(lambda: bool(gateway.refused))
        gateway.hangs_up_on = set()
        back = now()
        for sampling in samplings:
            await sampling.until_after(back, 8)

    assert gateway.refused <= 5


async def test_a_unit_for_which_the_gateway_answers_or_hangs_up_is_backed_off_as_well() -> None:
    for how in ("says_no_response", "hangs_up_on"):
        gateway = SerialGateway(units(2))
        async with opened(gateway) as devices, sampled(devices) as samplings:
            gateway.silent = {2}
            setattr(gateway, how, True if how == "says_no_response" else {2})
            began = now()
            await asyncio.sleep(3)
            taken = [at for at in samplings[0].at_seconds if at >= began]

        assert len(gateway.asked(2, began)) <= 6
        assert len(taken) >= 0.9 * 3 / PERIOD_SECONDS


async def test_a_unit_that_answers_just_in_time_leaves_its_neighbours_their_share() -> None:
    gateway = SerialGateway(units(2), busy_seconds={2: 0.9 * TIMEOUT_SECONDS})
    async with opened(gateway) as devices, sampled(devices) as samplings:
        began = now()
        await asyncio.sleep(4)
        taken = [at for at in samplings[0].at_seconds if at >= began]

    # Its sample takes three requests, and its neighbour's answer is waited for once.
    assert len(taken) >= 0.8 * 4 / PERIOD_SECONDS
    assert len(samplings[1].at_seconds) >= 3


async def test_a_gateway_that_waits_for_dead_units_itself_still_answers_for_the_others() -> None:
    gateway = SerialGateway(units(2), patience_seconds=2.5 * TIMEOUT_SECONDS)
    async with opened(gateway) as devices, sampled(devices) as samplings:
        gateway.silent = {2}
        await asyncio.sleep(2)
        began = now()
        await asyncio.sleep(5)
        taken = [at for at in samplings[0].at_seconds if at >= began]

    assert len(taken) >= 0.7 * 5 / PERIOD_SECONDS
    assert gateway.connections == 1


async def test_a_write_whose_time_is_over_while_it_waits_is_never_sent() -> None:
    gateway = SerialGateway(units(2))
    async with opened(gateway, timeoutSeconds=1.0) as devices:
        gateway.busy_seconds = {1: 0.5}
        busy = asyncio.create_task(devices[0].sample())
        await until(lambda: len(gateway.asked(1)) > 0 and not busy.done())
        waiting = asyncio.create_task(devices[1].write(WANTED))
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        asked = len(gateway.asked(2))
        await busy
        await devices[0].sample()

        assert len(gateway.asked(2)) == asked
        assert gateway.units[2].written == []  # type: ignore[attr-defined]
        assert await devices[1].read_setpoints() == Setpoints(), "the line goes on"


async def test_a_dead_unit_that_is_opened_again_and_again_is_backed_off_too() -> None:
    gateway = SerialGateway(units(2))
    async with gateway:
        device = await open_unit(gateway, 1)
        gateway.silent = {2}
        async with sampled([device]) as samplings:
            began = now()
            while now() < began + 4:
                with pytest.raises(DeviceTimeoutError):
                    await open_unit(gateway, 2)
                await asyncio.sleep(0.1)
            tries = len(gateway.asked(2, began))
            gateway.silent = set()
            async with asyncio.timeout(8):
                while not await _opens(gateway, 2):
                    await asyncio.sleep(0.1)
        await device.close()

    assert tries <= 3 + 0.25 * 4 / TIMEOUT_SECONDS + 3
    assert len(samplings[0].at_seconds) >= 0.8 * 4 / PERIOD_SECONDS


async def _opens(gateway: SerialGateway, unit_id: int) -> bool:
    try:
        device = await open_unit(gateway, unit_id)
    except DeviceTimeoutError:
        return False
    await device.close()
    return True


async def test_a_dead_unit_is_a_line_in_the_log_and_not_one_a_second() -> None:
    gateway = SerialGateway(units(2))
    async with opened(gateway) as devices:
        gateway.silent = {2}
        with capture_logs() as lines:
            for _ in range(40):
                assert await devices[1].sample() is None
                await asyncio.sleep(0.05)

    assert len({str(each["why"]) for each in lines if each["event"] == "sample.failed"}) == 1
    assert [each["event"] for each in lines].count("sample.failed") == 1


async def test_a_write_whose_time_is_over_before_anything_was_written_is_told_as_such() -> None:
    gateway = SerialGateway(units(2))
    async with opened(gateway, timeoutSeconds=5.0) as devices:
        gateway.busy_seconds = {1: 1.5}
        with pytest.raises(DeviceUnreachableError, match=r"5 s: nothing was written"):
            await devices[0].write(WANTED)

        assert gateway.units[1].written == []  # type: ignore[attr-defined]


async def test_a_sample_whose_time_is_over_before_that_of_its_request_names_whom_it_asked() -> None:
    gateway = SerialGateway(units(1))
    async with opened(gateway, timeoutSeconds=5.0) as devices:
        gateway.silent = {1}
        assert await devices[0].sample() is None

    what = f"read of 6 input registers at 0, unit 1, {gateway.address}: connected, but no answer"
    assert str(devices[0].complaint) == f"no answer within 2 s: {what}"


async def test_who_had_no_turn_is_not_told_to_have_left_a_question_unanswered() -> None:
    gateway = SerialGateway(units(2))
    async with opened(gateway, timeoutSeconds=5.0) as devices:
        device = devices[1]
        gateway.busy_seconds, opening = {1: 3.0}, len(gateway.asked(1))
        keeping = asyncio.create_task(devices[0]._device.sample())
        await until(lambda: len(gateway.asked(1)) > opening)
        asked = len(gateway.asked(2))
        assert await device.sample() is None
        assert str(device.complaint) == f"no answer within 2 s: {NO_TURN}"
        assert len(gateway.asked(2)) == asked
        gateway.busy_seconds = {}
        await keeping
        reading = await device.sample()
        assert reading is not None
        assert all(NO_TURN in bad.problem for bad in reading.bad_points)
