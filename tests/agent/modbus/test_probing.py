"""``derops-agent probe --profile``, as a person runs it."""

import asyncio
import json
import sys
from pathlib import Path

from tests.agent.lines import Line, PymodbusLine
from tests.agent.modbus.registers import battery
from tests.agent.modbus.test_device import PROFILES

BATTERY = PROFILES / "battery.yaml"


async def run(line: Line, profile: Path, *more: str) -> tuple[int, str, str]:
    host, port = line.address
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "derops-agent"),
        *("probe", "--host", host, "--port", str(port), "--profile", str(profile), *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_it_shows_what_a_device_offers_and_writes_nothing() -> None:
    registers = battery()
    async with PymodbusLine({1: registers}) as line:
        code, text, _ = await run(line, BATTERY)

    assert code == 0
    assert "device    Example battery" in text
    assert "holding 201    0x0000              controls.activePower.enable" in text
    assert "input   5      0x8000              measurements.temperatureCelsius" in text
    assert "ActivePower      by holding 200, device timer holding 230" in text
    assert "CeaseToEnergize  by holding 220, no timer in the device" in text
    assert registers.written == []


async def test_programs_get_json() -> None:
    registers = battery()
    registers.holding |= {240: 1, 201: 2, 200: 0x10000 - 500}
    registers.input[20] = 1
    async with PymodbusLine({1: registers}) as line:
        code, text, _ = await run(line, BATTERY, "--output", "json")

    found = json.loads(text)
    assert code == 0
    assert found["usable"]
    steps = {mode["mode"]: mode["step_watts"] for mode in found["modes"]}
    assert steps == {"ActivePower": 10, "GenerationLimit": 10, "CeaseToEnergize": None}
    assert found["ratings"]["max_injection_watts"] == 10_000
    assert found["measured"]["STATE_OF_CHARGE_PERCENT"] == 50.5
    assert found["held"]["active_power_watts"] == 5000
    assert found["local_control"]


async def test_a_device_that_is_another_one_says_which_registers_it_lacks() -> None:
    registers = battery()
    del registers.holding[211]
    async with PymodbusLine({1: registers}) as line:
        code, text, _ = await run(line, BATTERY)

    assert code == 1
    assert "holding 211    refused             controls.generationLimit.enable" in text
    assert "holding 210    0x03e8              controls.generationLimit.value" in text
    assert (
        "problem   GenerationLimit: controls.generationLimit.enable cannot be read: "
        "read of 1 holding registers at 211" in text
    )
    assert "exception 2" in text


async def test_a_wrong_profile_is_one_line(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(BATTERY.read_text().replace("timers:", "timer:"))
    async with PymodbusLine({1: battery()}) as line:
        code, _, error = await run(line, profile)

    assert code == 2
    assert f"timer ({profile}:" in error
    assert len(error.splitlines()) == 1


async def test_no_device_is_one_line() -> None:
    async with PymodbusLine({1: battery()}) as line:
        code, _, error = await run(line, BATTERY, "--unit-id", "9", "--timeout-seconds", "0.2")

    assert code == 1
    assert "unit 9" in error
    assert len(error.splitlines()) == 1


async def test_what_will_not_work_is_a_list_and_another_exit_code(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text(
        "name: no way to charge\n"
        "ratings: {maxInjectionWatts: {watts: 10000}, maxAbsorptionWatts: {watts: 8000}}\n"
        "measurements:\n"
        "  stateOfChargePercent: {address: 2, type: uint16, scale: 0.1, table: input}\n"
        "  voltageVolts: {address: 7, type: uint16, scale: 0.1, table: input}\n"
        "controls:\n"
        "  activePower: {value: {address: 200, type: uint16}, enable: {address: 201}}\n"
    )
    registers = battery()
    registers.input[2] = 1010
    async with PymodbusLine({1: registers}) as line:
        code, text, _ = await run(line, profile)
        _, output, _ = await run(line, profile, "--output", "json")

    found = json.loads(output)
    assert code == 3
    assert found["usable"]
    assert found["limits"][:2] == [
        "ActivePower: cannot absorb: its register holds no such value",
        "ActivePower: verify: Required is refused (CannotVerify): no active power is measured",
    ]
    assert found["limits"][3].startswith("stateOfChargePercent is not measured: ")
    assert found["limits"][3].endswith("101 %; it can be 0 to 100 % (0x03f2)")
    assert found["limits"][2].startswith("voltageVolts is not measured: read of 1 input registers")
    assert all(f"limit     {limit}" in text for limit in found["limits"])


async def test_a_register_that_is_not_answered_is_found_among_the_others() -> None:
    registers = battery()
    registers.instead = {220: None}
    async with PymodbusLine({1: registers}) as line:
        code, text, _ = await run(line, BATTERY, "--timeout-seconds", "0.2")
        registers.over.set()

    assert code == 1
    assert "problem   CeaseToEnergize: controls.energize cannot be read: " in text
    assert "no answer within 0.2 s" in text


async def test_a_profile_without_a_control_says_that_nothing_can_be_held(tmp_path: Path) -> None:
    profile = tmp_path / "profile.yaml"
    profile.write_text("name: meter\nratings: {maxInjectionWatts: {watts: 10000}}\n")
    async with PymodbusLine({1: battery()}) as line:
        code, text, _ = await run(line, profile)

    assert code == 1
    assert "problem   no mode can be held: the profile has no control" in text
