"""``derops-agent probe``, as a person runs it."""

import asyncio
import json
import sys
from pathlib import Path

from pymodbus.constants import ExcCodes
from tests.agent.lines import PymodbusLine as Line
from tests.agent.sunspec.inverter import BATTERY, Inverter


async def run(line: Line, *more: str) -> tuple[int, str, str]:
    host, port = line.address
    process = await asyncio.create_subprocess_exec(
        str(Path(sys.executable).parent / "derops-agent"),
        *("probe", "--host", host, "--port", str(port), *more),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def test_it_shows_what_a_device_offers_and_writes_nothing() -> None:
    inverter = Inverter(BATTERY)
    async with Line({1: inverter}) as line:
        code, text, _ = await run(line)

    assert code == 0
    assert "Maker Battery 10 1.2" in text
    assert "ActivePower      by 704 WSet, device timer WSetRvrtTms" in text
    assert "holds steps of 1 W from -2147483647 W up to 2147483647 W" in text, "WSet"
    assert "holds steps of 10 W from 0 W up to 10000 W" in text, (
        "WMaxLimPct, in 0.1 % of 10 kW, which is all"
    )
    assert "CeaseToEnergize  by 703 ES, no timer in the device" in text
    assert inverter.written == []


async def test_programs_get_json() -> None:
    async with Line({1: Inverter(BATTERY)}) as line:
        code, text, _ = await run(line, "--output", "json")

    found = json.loads(text)
    assert code == 0
    assert found["usable"]
    assert found["ratings"]["max_injection_watts"] == 10_000
    assert found["measured"]["STATE_OF_CHARGE_PERCENT"] == 50.5
    assert [model["id"] for model in found["models"]] == list(BATTERY)


async def test_a_device_that_cannot_be_used_says_why() -> None:
    async with Line({1: Inverter({1: BATTERY[1], 64001: {}} | {702: {"W_SF": 0}})}) as line:
        code, text, _ = await run(line)

    assert code == 1
    assert "problem   the device's most power is None" in text
    assert "problem   no mode can be held: the device has no function" in text


async def test_no_device_is_one_line() -> None:
    async with Line({1: Inverter(BATTERY)}) as line:
        code, _, error = await run(line, "--unit-id", "9", "--timeout-seconds", "0.2")

    assert code == 1
    assert "unit 9" in error
    assert len(error.splitlines()) == 1


async def test_what_will_not_work_is_a_list_and_another_exit_code() -> None:
    models = {**BATTERY, 701: {"W": 0, "W_SF": 99, "Hz": 5000, "Hz_SF": -2}}
    inverter = Inverter(models)
    inverter.instead = {inverter.at(704, "WMaxLimPctEna"): ExcCodes.ILLEGAL_ADDRESS}
    async with Line({1: inverter}) as line:
        code, text, _ = await run(line)
        _, output, _ = await run(line, "--output", "json")

    found = json.loads(output)
    assert code == 3
    assert found["usable"]
    assert found["problems"] == []
    assert [limit.split(" 99")[0] for limit in found["limits"][:4]] == [
        found["limits"][0],
        "ActivePower: verify: Required is refused (CannotVerify): no active power is measured",
        "CeaseToEnergize: verify: Required is refused (CannotVerify): no active power is measured",
        "701 W is not measured: W_SF of model 701 is",
    ]
    assert found["limits"][0].startswith("704 WMaxLimPctEna: what needs it is not offered:")
    assert "exception 2" in found["limits"][0]
    assert all(f"limit     {limit}" in text for limit in found["limits"])


async def test_a_map_where_nobody_looks_is_found_if_it_is_told() -> None:
    async with Line({1: Inverter(BATTERY, base=30_000)}) as line:
        without, _, error = await run(line)
        code, _, _ = await run(line, "--base-register", "30000")

    assert (without, code) == (1, 0)
    assert "no SunSpec map" in error
