"""What SunSpec devices do as people have them, from the order to the device's own registers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from pymodbus.constants import ExcCodes
from sunspec2 import mb
from tests.agent.fakes import T0, S, order
from tests.agent.field.playing import played
from tests.agent.lines import Answer
from tests.agent.sunspec.inverter import BATTERY, SOLAR, Inverter

from derops.errors import DeviceError
from derops.wire.v1 import agent_pb2
from derops_agent.drivers.modbus_tcp import Table
from derops_agent.drivers.sunspec.models import points_of

POWER = int(agent_pb2.ACTIVE_POWER_WATTS)


@dataclass
class Other:
    """One unit behind which there may be another map at any time, or something in between."""

    now: Inverter
    instead: Callable[[int, int, list[int] | None], Answer | None] = lambda *_: None
    """First register, count and values: what is answered and not done; None = it is."""

    change: Callable[[int, list[int]], list[int]] = lambda _, words: words
    """First register and what it holds: what is shown."""

    asked: list[tuple[int, int]] = field(default_factory=list)

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer:
        self.asked.append((address, count))
        answer = self.instead(address, count, values)
        if answer is not None:
            return answer
        got = await self.now.answer(table, address, count, values)
        return got if not isinstance(got, list) else self.change(address, got)

    def live(self) -> None:
        self.now.now_seconds += 1
        self.now.live()
        if 123 in self.now.models:
            share = 1.0
            if self.now.get(123, "WMaxLim_Ena") == 1:
                share = self.now.get(123, "WMaxLimPct") * 10.0 ** self.now.get(123, "WMaxLimPct_SF")
                share /= 100
            self.now.set(103, "W", int(4000 * min(1.0, share * 1.25)))


def with_another_model(of: Inverter, model_id: int, after: int) -> Inverter:
    """Return the same device with one more model in its map."""
    models: dict[int, Any] = {}
    for each, values in of.models.items():
        models[each] = {name: of.get(each, name) for name in (*values, *_implemented(of, each))}
        if each == after:
            models[model_id] = {}
    other = Inverter(models)
    other.now_seconds, other._timers = of.now_seconds, of._timers
    other.written = of.written
    return other


def _implemented(of: Inverter, model_id: int) -> list[str]:
    names = []
    for name, point in points_of(model_id).items():
        value = of.get(model_id, name)
        if name not in ("ID", "L") and mb.point_type_info[point.type].is_impl(value):
            names.append(name)
    return names


@pytest.mark.parametrize("at", [40, 100, 158])
async def test_a_map_that_has_moved_is_searched_for_anew(tmp_path: Path, at: int) -> None:
    unit = Other(Inverter(BATTERY))
    async with played(tmp_path, unit, unit.live) as play:
        await play.agent.give(order())
        await play.wait(at)
        unit.now = with_another_model(unit.now, 122, after=1)
        await play.wait(102 - at if at < 102 else 0)
        during = unit.now.get(704, "WSet"), play.agent.outcome()
        await play.wait(200 - max(at, 102))

    powers = {reading.values.get(POWER) for reading in play.readings}
    assert powers <= {0.0, 5000.0, None}
    if at < 102:
        assert during == (5000, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert unit.now.get(704, "WSet") == 0
    assert {model_id for model_id, _, _ in unit.now.written} <= {703, 704}
    assert play.agent.report().interruptions == 0


def solar(factor: int) -> Inverter:
    models = {each: dict(values) for each, values in SOLAR.items()}
    models[123] |= {"WMaxLimPct": 100 * 10**-factor, "WMaxLimPct_SF": factor}
    return Inverter(models)


def blank(inverter: Inverter) -> Callable[[int, list[int]], list[int]]:
    """Return what shows every point as not implemented, but for where models begin."""
    empty = Inverter({each: {} for each in inverter.models})

    def change(address: int, words: list[int]) -> list[int]:
        at = address - inverter.base
        return empty.registers[at : at + len(words)]

    return change


@pytest.mark.parametrize("at", [59, 62, 80, 158, 160])
@pytest.mark.parametrize("seconds", [1, 8])
async def test_a_device_that_shows_nothing_for_a_while_is_not_told_to_hold_nothing(
    tmp_path: Path, at: int, seconds: int
) -> None:
    unit = Other(solar(-2))
    normal = unit.change
    async with played(tmp_path, unit, unit.live, fallback_active_power_watts=None) as play:
        await play.agent.give(order(mode="GenerationLimit", watts=2500))
        await play.wait(at)
        unit.change = blank(unit.now)
        await play.wait(seconds)
        told_at_once = play.agent.outcome()
        held_at_once = unit.now.get(123, "WMaxLim_Ena")
        unit.change = normal
        await play.wait(140 - at if at < 140 else 0)
        during = unit.now.get(123, "WMaxLimPct"), play.agent.outcome()
        await play.wait(240 - max(140, at))

    if told_at_once[0] == "Complete":
        assert held_at_once == 0
    if at < 140:
        assert during == (5000, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert unit.now.get(123, "WMaxLim_Ena") == 0
    values = {value for _, name, value in unit.now.written if name == "WMaxLimPct"}
    assert values <= {5000}
    assert play.agent.report().interruptions == 0


async def test_a_limit_above_the_rating_is_the_rating(tmp_path: Path) -> None:
    unit = Other(Inverter(SOLAR))
    where = unit.now.at(123, "WMaxLimPct")

    def refuse(address: int, count: int, values: list[int] | None) -> Answer | None:
        too_much = values is not None and address == where and values[0] > 100
        return ExcCodes.ILLEGAL_VALUE if too_much else None

    unit.instead = refuse
    async with played(
        tmp_path,
        unit,
        unit.live,
        fallback_active_power_watts=None,
        fallback_max_generation_watts=8000,
    ) as play:
        await play.agent.give(order(mode="GenerationLimit", watts=2500))
        await play.agent.give(
            order(
                "above", mode="GenerationLimit", watts=6000, start_us=order().start_us + 200_000_000
            )
        )
        await play.wait(300)
        during = unit.now.get(123, "WMaxLimPct"), play.agent.outcome("above")
        await play.wait(200)

    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert during == (100, ("Active", "Applied"))
    report = play.agent.report("above")
    assert (report.applied_watts, report.rounding) == (5000, "the device holds at most 5000 W")
    assert play.agent.outcome("above") == ("Complete", "WindowEnded")


@pytest.mark.parametrize("most", [1, 10, 30])
async def test_a_device_that_answers_small_questions_only(tmp_path: Path, most: int) -> None:
    unit = Other(Inverter(BATTERY))
    unit.instead = lambda _, count, values: (
        ExcCodes.ILLEGAL_ADDRESS if values is None and count > max(most, 4) else None
    )
    async with played(tmp_path, unit, unit.live) as play:
        await play.agent.give(order())
        await play.wait(80)
        during = unit.now.get(704, "WSet"), play.agent.outcome()
        await play.wait(120)

    assert during == (5000, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert unit.now.get(704, "WSet") == 0
    assert play.readings[-1].values.keys() >= {POWER}


@pytest.mark.parametrize(("most", "percent"), [(4000, 62), (8000, 31)])
@pytest.mark.parametrize("at", [30, 90])
async def test_percent_are_those_of_the_most_power_that_somebody_set_since(
    tmp_path: Path, most: int, percent: int, at: int
) -> None:
    unit = Other(Inverter(SOLAR))
    async with played(tmp_path, unit, unit.live, fallback_active_power_watts=None) as play:
        await play.agent.give(order(mode="GenerationLimit", watts=2500))
        await play.wait(at)
        unit.now.set(121, "WMax", most)
        await play.wait(110 - at)
        during = unit.now.get(123, "WMaxLimPct"), play.agent.outcome()
        await play.wait(100)

    assert during == (percent, ("Active", "Applied"))
    assert play.agent.outcome() == ("Complete", "WindowEnded")
    assert play.agent.report().interruptions == (0 if at == 30 else 1)


async def test_a_scale_factor_that_changes_with_the_power_is_that_of_the_value(
    tmp_path: Path,
) -> None:
    unit = Other(Inverter(BATTERY))
    between = unit.now.at(701, "TotVarhInjL2")

    def refuse(address: int, count: int, _: list[int] | None) -> Answer | None:
        if unit.now.get(704, "WSetEna") and address <= unit.now.at(701, "W_SF") < address + count:
            seen.append(None)
            factor = len(seen) // 3 % 2
            unit.now.set(701, "W_SF", factor)
        return ExcCodes.ILLEGAL_ADDRESS if address <= between < address + count else None

    seen: list[None] = []

    def show(address: int, words: list[int]) -> list[int]:
        at = unit.now.at(701, "W") - address
        if 0 <= at < len(words) and unit.now.get(701, "W_SF"):
            words = [*words[:at], words[at] // 10, *words[at + 1 :]]
        return words

    unit.instead, unit.change = refuse, show
    async with played(tmp_path, unit, unit.live) as play:
        await play.agent.give(order(verify="Required"))
        await play.wait(200)

    assert {reading.values.get(POWER) for reading in play.readings} == {0.0, 5000.0}
    assert play.agent.outcome() == ("Complete", "WindowEnded")


@pytest.mark.parametrize("name", ["WSetRvrtTms", "WSet", "WSetEna"])
async def test_a_device_that_says_no_and_does_it(tmp_path: Path, name: str) -> None:
    unit = Other(Inverter(BATTERY))
    where = unit.now.at(704, name)

    def refuse(address: int, count: int, values: list[int] | None) -> Answer | None:
        if values is None or address != where or not any(values):
            return None
        unit.now._take(address - unit.now.base, values)
        return ExcCodes.ILLEGAL_VALUE

    async with played(tmp_path, unit, unit.live) as play:
        unit.instead = refuse
        await play.agent.give(order())
        await play.wait(240)

    unit.now.live()
    assert play.agent.outcome()[0] == "Failed"
    assert unit.now.get(704, "WSet") * unit.now.get(704, "WSetEna") == 0


async def test_a_device_that_shows_nothing_yet_is_not_opened_yet(tmp_path: Path) -> None:
    unit = Other(solar(-2))
    show = blank(unit.now)
    first, last = unit.now.at(121, "WMax"), unit.now.at(121, "WMax_SF")

    def asleep(address: int, words: list[int]) -> list[int]:
        ratings = range(unit.now.at(120, "ID"), last + 1)
        assert first in ratings
        shown = show(address, words)
        return [word if address + at in ratings else shown[at] for at, word in enumerate(words)]

    unit.change = asleep
    with pytest.raises(DeviceError, match="shows no value now"):
        async with played(tmp_path, unit, unit.live):
            pass
    unit.change = lambda _, words: words
    async with played(tmp_path, unit, unit.live) as play:
        assert "GenerationLimit" in play.agent.device.capability.modes


@pytest.mark.parametrize(("toggle", "verified"), [(False, "False"), (True, "True")])
async def test_a_limit_that_counts_only_once_it_was_off(
    tmp_path: Path, toggle: bool, verified: str
) -> None:
    unit, counts = Other(Inverter(SOLAR)), [100]

    def latch(_: int, __: int, values: list[int] | None) -> Answer | None:
        if values is not None and not unit.now.get(123, "WMaxLim_Ena"):
            counts[0] = 100
        return None

    def live() -> None:
        unit.live()
        enabled = unit.now.get(123, "WMaxLim_Ena") == 1
        if enabled and counts[0] == 100:
            counts[0] = unit.now.get(123, "WMaxLimPct")
        unit.now.set(103, "W", min(4000, counts[0] * 50) if enabled else 4000)

    unit.instead = latch
    second = order("d2", mode="GenerationLimit", watts=1000, start_us=T0 + 160 * S)
    async with played(
        tmp_path,
        unit,
        live,
        options={"toggleEnable": toggle},
        fallback_active_power_watts=None,
    ) as play:
        await play.agent.give(order(mode="GenerationLimit", watts=2500), second)
        await play.wait(300)

    assert play.agent.report("d1").verified == "True"
    assert play.agent.report("d2").verified == verified
