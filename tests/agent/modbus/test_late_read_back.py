"""A device that shows a write only seconds later, over Modbus: written once, told as it was."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pymodbus.constants import ExcCodes
from tests.agent.fakes import T0, Agent, FakeClock, S, asset, order
from tests.agent.lines import Answer, PymodbusLine
from tests.agent.modbus.test_loading import GOOD

from derops.errors import SettingError
from derops_agent.drivers import open_device
from derops_agent.drivers.modbus.loading import load_profile
from derops_agent.drivers.modbus_tcp import Table
from derops_agent.ports import ReadBack

PROFILE = """\
name: Late
ratings: {maxInjectionWatts: {watts: 5000}, maxAbsorptionWatts: {watts: 5000}}
measurements: {activePowerWatts: {address: 0, type: int16}}
controls: {activePower: {value: {address: 100, type: int16}, enable: {address: 101}}}
"""


@dataclass
class LateRegisters:
    """Shows each register ``lag_seconds`` after its last write; its power follows at once."""

    clock: FakeClock
    lag_seconds: float
    words: dict[int, int] = field(default_factory=lambda: {0: 0, 100: 0, 101: 0})
    real: dict[int, int] = field(default_factory=dict)
    due_us: dict[int, int] = field(default_factory=dict)
    written: list[int] = field(default_factory=list)

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer:
        for at, value in enumerate(values or (), address):
            self.real[at] = value
            self.due_us[at] = self.clock.mono_us + round(self.lag_seconds * S)
            self.written.append(at)
        for at, due_us in self.due_us.items():
            if due_us <= self.clock.mono_us:
                self.words[at] = self.real[at]
        self.words[0] = self.real.get(100, 0) if self.real.get(101) else 0
        addresses = range(address, address + count)
        if not all(each in self.words for each in addresses):
            return ExcCodes.ILLEGAL_ADDRESS
        return [self.words[each] for each in addresses]


async def run(agent: Agent, registers: LateRegisters, seconds: int) -> None:
    for _ in range(seconds):
        agent.clock.pass_seconds(1)
        agent.controller.take(await agent.device.sample())
        await agent.controller.turn()


async def start(agent: Agent, line: PymodbusLine, folder: Path, more: str = "") -> None:
    (folder / "profile.yaml").write_text(PROFILE + more)
    host, port = line.address
    config = {"kind": "modbus", "host": host, "port": port, "profile": str(folder / "profile.yaml")}
    await agent.use(await open_device(config, folder, agent.clock))
    await agent.start()


@pytest.mark.parametrize(
    ("lag_seconds", "more"), [(3, ""), (12, "readBack: {patienceSeconds: 20, delaySeconds: 2}\n")]
)
async def test_a_late_device_is_written_once_and_has_held_it_from_then_on(
    tmp_path: Path, lag_seconds: float, more: str
) -> None:
    agent = Agent(tmp_path)
    registers = LateRegisters(agent.clock, lag_seconds)
    async with PymodbusLine({1: registers}) as line:
        await start(agent, line, tmp_path, more)
        await agent.give(order(watts=1500, duration_seconds=60))
        await run(agent, registers, 60 + 60 + 25)
        await agent.device.close()

    report = agent.report()
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert report.applied_us == pytest.approx(T0 + 60 * S, abs=S)
    assert report.active_milliseconds == pytest.approx(60_000, abs=1_000)
    assert registers.written.count(100) <= 3, "the fallback, the value, the fallback"


async def test_what_is_withdrawn_before_it_is_shown_is_switched_off_all_the_same(
    tmp_path: Path,
) -> None:
    agent = Agent(tmp_path)
    registers = LateRegisters(agent.clock, 3)
    async with PymodbusLine({1: registers}) as line:
        await start(agent, line, tmp_path)
        config = asset()
        config.ClearField("fallback_active_power_watts")
        await agent.give(config, order(watts=1500))
        await run(agent, registers, 61)
        assert registers.real[101] == 1
        await agent.give(order(watts=1500, cancelled=True, generation=2))
        await agent.device.close()

    assert registers.real[101] == 0


def test_a_profile_says_how_late_a_device_shows_it(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    file.write_text(GOOD + "readBack: {delaySeconds: 1, patienceSeconds: 9, mostWrites: 2}\n")
    assert load_profile(file).read_back.settings() == ReadBack(
        delay_seconds=1, pace_seconds=1, patience_seconds=9, most_writes=2
    )
    file.write_text(GOOD + "readBack: {delaySeconds: 9}\n")

    with pytest.raises(SettingError, match="delaySeconds 9 must be below patienceSeconds 5"):
        load_profile(file)
