"""What devices with a profile do as people have them, from the order to their own registers."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pymodbus.constants import ExcCodes
from tests.agent.fakes import T0, S, order
from tests.agent.field.playing import played
from tests.agent.lines import Answer
from tests.agent.modbus.registers import Registers, battery, charger

from derops.errors import DeviceError
from derops_agent.drivers.modbus_tcp import Table


@dataclass
class Between:
    """Registers, and what may come in between."""

    registers: Registers
    instead: Callable[[Table, int, int, list[int] | None], Answer | None] = lambda *_: None
    """What is asked: what is answered and not done; None = it is."""

    after: Callable[[], None] = lambda: None
    """What becomes of it by itself, once it was written."""

    shows: Callable[[int], int] = lambda word: word

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer:
        answer = self.instead(table, address, count, values)
        if answer is not None:
            return answer
        got = await self.registers.answer(table, address, count, values)
        if values is not None:
            self.after()
        return got if not isinstance(got, list) else [self.shows(word) for word in got]

    @property
    def held(self) -> dict[int, int]:
        return self.registers.holding

    def live(self) -> None:
        self.registers.now_seconds += 1
        self.registers.live()
        if 200 in self.held:
            steps = self.held[200] if self.held[201] == 2 and self.held[240] else 0
            watts = (steps - 0x10000 if steps > 0x7FFF else steps) * 10
            self.registers.input |= {0: watts & 0xFFFF, 1: watts >> 16 & 0xFFFF}


BATTERY: dict[str, Any] = {"profile": "battery.yaml"}
CHARGER: dict[str, Any] = {
    "profile": "ev-charger.yaml",
    "type": "EVCharger",
    "fallback_active_power_watts": None,
    "limit_max_injection_watts": 0,
    "limit_max_absorption_watts": 22_080,
}


@pytest.mark.parametrize("at", [59, 62, 80, 159, 160])
@pytest.mark.parametrize(("seconds", "word"), [(1, 0xFFFF), (8, 0x8000)])
async def test_registers_that_show_nothing_for_a_while(
    tmp_path: Path, at: int, seconds: int, word: int
) -> None:
    unit = Between(battery())
    async with played(
        tmp_path, unit, unit.live, **BATTERY, fallback_active_power_watts=None
    ) as play:
        await play.agent.give(order())
        await play.wait(at)
        unit.shows = lambda _: word
        await play.wait(seconds)
        at_once = play.agent.outcome()[0], unit.held[201] == 2 and unit.held[240] == 1
        unit.shows = lambda shown: shown
        await play.wait(140 - at if at < 140 else 0)
        during = unit.held[200], play.agent.outcome()
        await play.wait(240 - max(140, at))

    assert at_once != ("Complete", True)
    if at < 140:
        assert during == (0x10000 - 500, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert (unit.held[201], unit.held[240]) == (0, 0)
    assert play.agent.report().interruptions == 0


async def test_controls_that_are_read_one_by_one_only(tmp_path: Path) -> None:
    unit = Between(battery())
    unit.instead = lambda table, _, count, values: (
        ExcCodes.ILLEGAL_ADDRESS if table == "holding" and values is None and count > 1 else None
    )
    async with played(tmp_path, unit, unit.live, **BATTERY) as play:
        await play.agent.give(order())
        await play.wait(80)
        during = unit.held[200], play.agent.outcome()
        await play.wait(120)

    assert during == (0x10000 - 500, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")


async def test_a_device_that_is_busy_now_and_then(tmp_path: Path) -> None:
    unit, asked = Between(battery()), []

    def every_third(*question: object) -> Answer | None:
        asked.append(question)
        return ExcCodes.DEVICE_BUSY if len(asked) % 3 == 0 else None

    async with played(tmp_path, unit, unit.live, **BATTERY) as play:
        unit.instead = every_third
        await play.agent.give(order())
        await play.wait(240)

    assert play.agent.outcome() == ("Complete", "WindowEnded")
    report = play.agent.report()
    assert report.applied_us - (T0 + 60 * S) <= 5 * S
    assert report.interruptions == 0
    assert unit.held[201] == 0 or unit.held[200] == 0
    assert len(play.readings) > 120


async def test_a_device_that_acknowledges_a_write_and_does_it_later(tmp_path: Path) -> None:
    unit, left = Between(battery()), list[tuple[int, list[int], float]]()

    def acknowledge(_: Table, at: int, __: int, values: list[int] | None) -> Answer | None:
        if values is None:
            return None
        left.append((at, values, unit.registers.now_seconds + 2))
        return ExcCodes.ACKNOWLEDGE

    def live() -> None:
        unit.live()
        while left and left[0][2] <= unit.registers.now_seconds:
            at, values, _ = left.pop(0)
            unit.registers._take(at, values)

    async with played(tmp_path, unit, live, **BATTERY) as play:
        unit.instead = acknowledge
        await play.agent.give(order(verify="Required"))
        await play.wait(100)
        during = unit.held[200], play.agent.outcome()
        await play.wait(140)

    assert during == (0x10000 - 500, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert play.agent.report().interruptions == 0
    assert len([at for at, _ in unit.registers.written if at == 200]) <= 3


async def test_a_device_that_is_busy_with_writes_for_a_while(tmp_path: Path) -> None:
    unit = Between(battery())
    async with played(tmp_path, unit, unit.live, **BATTERY) as play:
        await play.agent.give(order(start_deadline_seconds=50))
        await play.wait(59)
        unit.instead = lambda _table, _at, _count, values: (
            ExcCodes.DEVICE_BUSY if values is not None else None
        )
        await play.wait(30)
        unit.instead = lambda *_: None
        await play.wait(20)
        during = unit.held[200], play.agent.outcome()
        await play.wait(150)

    assert during == (0x10000 - 500, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")


async def test_a_charger_that_makes_more_of_a_small_limit_is_not_told_fine(tmp_path: Path) -> None:
    unit = Between(charger())

    def clamp() -> None:
        unit.held[1000] = max(6, unit.held[1000])

    unit.after = clamp
    async with played(tmp_path, unit, unit.live, **CHARGER) as play:
        await play.agent.give(order(mode="LoadLimit", watts=3000))
        await play.wait(240)

    assert play.agent.outcome()[0] == "Failed"
    assert play.agent.report().applied_us == 0
    assert unit.held[1000] == 32
    assert len(unit.registers.written) < 40


async def test_a_charger_that_shows_a_small_limit_and_draws_more(tmp_path: Path) -> None:
    unit = Between(charger())

    def live() -> None:
        unit.live()
        unit.registers.input[11] = min(11_040, max(6, unit.held[1000]) * 690)

    async with played(tmp_path, unit, live, **CHARGER) as play:
        await play.agent.give(order(mode="LoadLimit", watts=3000))
        await play.wait(240)

    assert play.agent.report().verified == "False"


async def test_a_value_that_is_a_step_lower_some_seconds_later(tmp_path: Path) -> None:
    unit, wrote = Between(battery()), []

    def note() -> None:
        wrote.append(unit.registers.now_seconds)

    unit.after = note

    def live() -> None:
        unit.live()
        drift = wrote and unit.registers.now_seconds - wrote[-1] == 12
        if drift and unit.held[201] == 2:
            unit.held[200] += 1  # it counts the other way: 10 W less of injection

    async with played(tmp_path, unit, live, **BATTERY) as play:
        await play.agent.give(order(verify="Required"))
        await play.wait(140)
        await play.wait(100)

    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert play.agent.report().interruptions == 0
    written = [values for at, values in unit.registers.written if at == 200]
    assert written == [[0], [0x10000 - 500], [0]]


@pytest.mark.parametrize("night_seconds", [5, 30])
async def test_a_device_that_restarts_and_forgets_its_limit(
    tmp_path: Path, night_seconds: int
) -> None:
    unit = Between(battery())
    async with played(
        tmp_path,
        unit,
        unit.live,
        **BATTERY,
        fallback_active_power_watts=None,
        fallback_max_generation_watts=8000,
    ) as play:
        await play.agent.give(order(mode="GenerationLimit", watts=2500))
        await play.wait(80)
        unit.instead = lambda *_: ExcCodes.DEVICE_FAILURE
        unit.held.update({210: 1000, 211: 0, 230: 0, 240: 0})
        unit.registers.due_seconds = None
        await play.wait(night_seconds)
        unit.instead = lambda *_: None
        await play.wait(25)
        during = unit.held[210], unit.held[211], unit.held[240], play.agent.outcome()
        await play.wait(130)

    assert during == (250, 1, 1, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert unit.held[210] == 800
    assert play.agent.report().active_milliseconds <= 100_000 - night_seconds * 1000 + 6000


async def test_another_client_that_writes_its_own_value(tmp_path: Path) -> None:
    unit = Between(battery())

    def live() -> None:
        unit.live()
        if unit.registers.now_seconds in (40, 82, 103, 124) and unit.held[201] == 2:
            unit.held[200] = 0x10000 - 100

    async with played(tmp_path, unit, live, **BATTERY) as play:
        await play.agent.give(order())
        await play.wait(240)

    report = play.agent.report()
    assert report.interruptions > 0 or report.phase == "Failed"
    assert report.active_milliseconds < 98_000
    assert unit.held[201] == 0 or unit.held[200] == 0


async def test_a_device_that_refuses_more_than_all(tmp_path: Path) -> None:
    unit = Between(battery())
    unit.instead = lambda _, address, __, values: (
        ExcCodes.ILLEGAL_VALUE if values and address == 210 and values[0] > 1000 else None
    )
    async with played(
        tmp_path,
        unit,
        unit.live,
        **BATTERY,
        fallback_active_power_watts=None,
        fallback_max_generation_watts=15_000,
    ) as play:
        await play.agent.give(order(mode="GenerationLimit", watts=2500))
        await play.wait(100)
        during = play.agent.outcome()
        await play.wait(140)

    assert during == ("Active", "Applied")
    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert (unit.held[210], unit.held[211]) == (1000, 1)


@pytest.mark.parametrize(("tens", "raw"), [(80, 312), (200, 125)])
async def test_percent_are_those_of_the_rating_as_it_is_now(
    tmp_path: Path, tens: int, raw: int
) -> None:
    unit = Between(battery())
    async with played(
        tmp_path, unit, unit.live, **BATTERY, fallback_active_power_watts=None
    ) as play:
        await play.agent.give(order(mode="GenerationLimit", watts=2500))
        await play.wait(30)
        unit.held[100] = tens
        await play.wait(80)
        during = unit.held[210], play.agent.outcome()
        await play.wait(100)

    assert during == (raw, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")


@pytest.mark.parametrize("word", [0xFFFF, 0x8000])
async def test_a_device_that_shows_no_rating_yet_is_not_opened_yet(
    tmp_path: Path, word: int
) -> None:
    unit = Between(battery(), shows=lambda _: word)
    with pytest.raises(DeviceError, match="no rating"):
        async with played(tmp_path, unit, unit.live, **BATTERY):
            pass
    unit.shows = lambda shown: shown
    async with played(tmp_path, unit, unit.live, **BATTERY) as play:
        assert play.agent.device.capability.max_injection_watts == 10_000
