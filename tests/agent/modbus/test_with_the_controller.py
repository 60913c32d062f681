"""A dispatch on a device with a profile, from the order to the device's own registers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from pymodbus.constants import ExcCodes
from tests.agent.fakes import T0, Agent, S, asset, order
from tests.agent.lines import GoLine
from tests.agent.modbus.registers import Registers, battery, charger
from tests.agent.modbus.test_device import PROFILES

from derops_agent.drivers import open_device


async def wait(agent: Agent, registers: Registers, seconds: int) -> None:
    for _ in range(seconds):
        agent.clock.pass_seconds(1)
        registers.now_seconds += 1
        registers.live()
        drawn = min(11_040, registers.holding[1000] * 690)
        registers.input[11] = drawn
        agent.controller.take(await agent.device.sample())
        await agent.controller.turn()


@asynccontextmanager
async def charging(
    folder: Path, registers: Registers, profile: Path = PROFILES / "ev-charger.yaml", **config: Any
) -> AsyncIterator[Agent]:
    async with GoLine({1: registers}) as line:
        agent = Agent(folder)
        host, port = line.address
        options = {"kind": "modbus", "host": host, "port": port, "profile": str(profile)}
        device = await open_device(options, folder, agent.clock)
        await agent.use(device)
        await agent.start(
            asset(
                type="EVCharger",
                fallback_active_power_watts=None,
                limit_max_injection_watts=0,
                limit_max_absorption_watts=22_080,
                verification_settle_seconds=5,
                **config,
            )
        )
        yield agent
        await device.close()


async def test_a_charger_of_whole_ampere_does_what_it_can_and_both_values_are_told(
    tmp_path: Path,
) -> None:
    registers = charger()
    limits = {"high": (11_000, 10_350, 15), "low": (4830, 4830, 7)}
    orders = [
        order(uid, mode="LoadLimit", watts=watts, start_us=T0 + at * S, verify="Required")
        for (uid, (watts, _, _)), at in zip(limits.items(), (60, 200), strict=True)
    ]
    async with charging(tmp_path, registers, fallback_max_load_watts=11_000) as agent:
        await agent.give(*orders, order("little", mode="LoadLimit", watts=500))
        await wait(agent, registers, 5)
        before = registers.holding[1000]
        during = {}
        for uid, left in (("high", 100), ("low", 140)):
            await wait(agent, registers, left)
            during[uid] = (registers.holding[1000], agent.outcome(uid))
        await wait(agent, registers, 80)
        writes = len(registers.written)
        await wait(agent, registers, 300)

    assert before == 15, "the fallback, rounded down"
    for uid, (watts, sent_watts, ampere) in limits.items():
        report = agent.report(uid)
        assert during[uid] == (ampere, ("Active", "Applied"))
        assert agent.outcome(uid) == ("Complete", "WindowEnded")
        assert (report.applied_watts, report.verified) == (sent_watts, "True")
        rounded = "the device holds steps of 690 W; rounded towards zero"
        assert report.rounding == (rounded if watts != sent_watts else "")
        assert report.interruptions == 0
        messages = [step.message for step in report.transitions]
        assert [rounded in each for each in messages] == [watts != sent_watts] * 2 + [False]
    assert agent.outcome("little") == ("Rejected", "NotRepresentable")
    assert "LoadLimit of 500 W would be 0 W" in agent.report("little").message
    assert "steps of 690 W" in agent.report("little").message
    assert registers.holding[1000] == 15
    assert len(registers.written) == writes, "it is written for ever"


async def test_a_charger_on_another_step_than_was_sent_is_not_told_fine(tmp_path: Path) -> None:
    registers = charger()
    async with charging(tmp_path, registers, fallback_max_load_watts=11_000) as agent:
        await agent.give(order(mode="LoadLimit", watts=7000))
        registers.ignores_values = True
        registers.holding[1000] = 11  # its own; 10 were sent
        await wait(agent, registers, 150)

    assert agent.outcome() == ("Failed", "ReadBackMismatch")


async def test_a_charger_that_rounds_what_its_register_takes_says_so_in_its_profile(
    tmp_path: Path,
) -> None:
    registers = charger()
    registers.holding[1000] = 320
    registers.rounds = {1000: 10}
    profile = tmp_path / "tenths.yaml"
    text = (PROFILES / "ev-charger.yaml").read_text().replace("scale: 690", "scale: 69")
    profile.write_text(text.replace("    release:", "    step: 690\n    release:"))
    async with charging(tmp_path, registers, profile) as agent:
        await agent.give(order(mode="LoadLimit", watts=7500))
        await wait(agent, registers, 100)
        during = (registers.holding[1000], agent.outcome(), agent.report().applied_watts)
        await wait(agent, registers, 80)

    assert during == (100, ("Active", "Applied"), 6900)
    assert agent.outcome() == ("Complete", "WindowEnded")


async def test_a_charger_is_limited_verified_and_let_go(tmp_path: Path) -> None:
    registers = charger()
    async with charging(tmp_path, registers) as agent:
        await agent.give(order(mode="LoadLimit", watts=4200))
        await wait(agent, registers, 60)
        during = (registers.holding[1000], agent.outcome())
        await wait(agent, registers, 102)

    report = agent.report()
    assert during == (6, ("Active", "Applied")), "6 A of each phase are 4140 W"
    assert registers.holding[1000] == 32
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert (report.evidence, report.verified) == ("Effect", "True")
    assert report.reversion_guard == "DeviceTimer"


async def test_what_cannot_be_verified_is_refused_in_each_mode(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    text = (PROFILES / "battery.yaml").read_text()
    profile.write_text(
        "\n".join(line for line in text.splitlines() if "activePowerWatts" not in line)
    )
    async with GoLine({1: battery()}) as line:
        agent = Agent(tmp_path)
        host, port = line.address
        config = {"kind": "modbus", "host": host, "port": port, "profile": str(profile)}
        device = await open_device(config, tmp_path, agent.clock)
        await agent.use(device)
        await agent.start(asset())
        for mode, watts in (("ActivePower", 100), ("GenerationLimit", 100), ("CeaseToEnergize", 0)):
            await agent.give(order(mode, mode=mode, watts=watts, verify="Required"))
            await agent.give(order(f"{mode} report", mode=mode, watts=watts))
        await device.close()

    for mode in ("ActivePower", "GenerationLimit", "CeaseToEnergize"):
        assert agent.outcome(mode) == ("Rejected", "CannotVerify")
        assert agent.outcome(f"{mode} report") == ("Acked", "Accepted")


async def test_power_that_is_nonsense_from_the_start_is_named_where_it_cannot_be_verified(
    tmp_path: Path,
) -> None:
    registers = battery()
    registers.input[1] = 0x7FFF
    async with GoLine({1: registers}) as line:
        agent = Agent(tmp_path)
        host, port = line.address
        profile = str(PROFILES / "battery.yaml")
        device = await open_device(
            {"kind": "modbus", "host": host, "port": port, "profile": profile},
            tmp_path,
            agent.clock,
        )
        await agent.use(device)
        await agent.start(asset())
        agent.controller.take(await device.sample())
        await agent.controller.turn()
        await agent.give(order(watts=100, verify="Required"))
        await device.close()

    assert agent.outcome() == ("Rejected", "CannotVerify")
    assert "does not measure its power: activePowerWatts, raw value 0x" in agent.report().message


async def test_one_bad_point_leaves_a_dispatch_alone(tmp_path: Path) -> None:
    registers = battery()
    async with GoLine({1: registers}) as line:
        agent = Agent(tmp_path)
        host, port = line.address
        profile = str(PROFILES / "battery.yaml")
        config = {"kind": "modbus", "host": host, "port": port, "profile": profile}
        device = await open_device(config, tmp_path, agent.clock)
        await agent.use(device)
        await agent.start(asset(verification_settle_seconds=5))
        await agent.give(order(watts=2000, verify="Required"))
        registers.input |= {2: 1010, 8: 0x7FC0}  # state of charge 101 %, an energy that is NaN
        for second in range(165):
            agent.clock.pass_seconds(1)
            if second == 80:
                registers.instead = {3: ExcCodes.ILLEGAL_ADDRESS}
            held = registers.holding[200] * 10 if registers.holding[201] == 2 else 0
            power = held - 0x10000 * 10 if held > 0x7FFF * 10 else held
            registers.input |= {0: power & 0xFFFF, 1: power >> 16 & 0xFFFF}
            agent.controller.take(await agent.device.sample())
            await agent.controller.turn()
        await device.close()

    report = agent.report()
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert (report.evidence, report.verified) == ("Effect", "True")
