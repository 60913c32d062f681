"""How far from the planned start and end a device takes its values, by the device's own account."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.agent.lines import PymodbusLine
from tests.agent.sunspec.inverter import BATTERY, Inverter
from tests.bench.echo import dispatch_of
from tests.bench.gateway import bench_headend
from tests.bench.results import Result
from tests.field.agents import Agents
from tests.field.headend import FieldHeadend

_PROMISED_MILLISECONDS = 100.0
_SIMULATED, _MODBUS = 30, 15
_WINDOWS = 7
_WINDOW_SECONDS = 1
_SPACING_US = 11_130_000
"""From one start to the next of a device: a shorter gap than 10 s is bridged, and has no end."""

_APART_US = 173_000
"""Between devices: all fractions of a second come up."""

_AHEAD_US = 5_000_000


@dataclass
class _TimedInverter(Inverter):
    """Writes down when it was told which power."""

    account: list[tuple[int, int]] = field(default_factory=list)
    """Microseconds, and watts; 0 where it is not set."""

    def _take(self, at: int, words: list[int]) -> None:
        super()._take(at, words)
        watts = self.get(704, "WSet") if self.get(704, "WSetEna") == 1 else 0
        self.account.append((time.time_ns() // 1000, watts))


def measure() -> Iterator[Result]:
    """One agent with simulated and SunSpec batteries, seven windows each; p99 of both errors."""
    with bench_headend(_SIMULATED + _MODBUS) as headend:
        on_modbus = headend.assets[_SIMULATED:]
        inverters = {number: _TimedInverter(BATTERY) for number in range(1, _MODBUS + 1)}
        with _serving(inverters) as (host, port):
            drivers = {
                asset.name: {"kind": "sunspec", "host": host, "port": port, "unitId": unit}
                for unit, asset in zip(inverters, on_modbus, strict=True)
            }
            agents = Agents(headend, headend.assets, drivers=drivers)
            agents.start()
            try:
                planned = asyncio.run(_order(headend))
            finally:
                agents.process.terminate()
        accounts = {
            asset.uid: _account_of_simulated(agents, asset.name)
            for asset in headend.assets[:_SIMULATED]
        }
    kinds = {
        "simulated": accounts,
        "modbus": {
            asset.uid: inverter.account
            for asset, inverter in zip(on_modbus, inverters.values(), strict=True)
        },
    }
    for kind, device_accounts in kinds.items():
        starts, ends = _errors(planned, device_accounts)
        for name, errors in (("start", starts), ("end", ends)):
            yield Result(
                name=f"{name}_error_p99_{kind}",
                value=sorted(errors)[int(0.99 * len(errors))] / 1e3,
                unit="ms",
                limit=_PROMISED_MILLISECONDS,
            )


@dataclass(frozen=True, slots=True)
class _Planned:
    asset_uid: str
    watts: int
    start_us: int
    end_us: int


async def _order(headend: FieldHeadend) -> list[_Planned]:
    """Order all windows; return them once all have ended."""
    planned = []
    first_us = time.time_ns() // 1000 + _AHEAD_US
    async with headend.operator() as operator:
        for place, asset in enumerate(headend.assets):
            for number in range(_WINDOWS):
                order = dispatch_of(asset.uid, f"{asset.uid}-{number}")
                order.setpoint.watts = 1000 + number
                order.start_us = first_us + number * _SPACING_US + place * _APART_US
                order.duration_seconds = _WINDOW_SECONDS
                await operator.say(dispatch=order)
                end_us = order.start_us + _WINDOW_SECONDS * 1_000_000
                planned.append(_Planned(asset.uid, 1000 + number, order.start_us, end_us))
        unfinished = {f"{asset.uid}-{n}" for asset in headend.assets for n in range(_WINDOWS)}
        while unfinished:
            report = (await operator.hear()).report.report
            assert report.phase in ("", "Acked", "Active", "Complete"), report
            if report.phase == "Complete":
                unfinished.discard(report.dispatch_uid)
    return planned


def _errors(
    planned: list[_Planned], accounts: dict[str, list[tuple[int, int]]]
) -> tuple[list[int], list[int]]:
    """Return by how many microseconds starts and ends were off."""
    starts, ends = [], []
    for window in planned:
        if window.asset_uid not in accounts:
            continue
        account = accounts[window.asset_uid]
        held = [at_us for at_us, watts in account if watts == window.watts]
        starts.append(abs(held[0] - window.start_us))
        left = next(at_us for at_us, watts in account if at_us > held[-1])
        ends.append(abs(left - window.end_us))
    return starts, ends


def _account_of_simulated(agents: Agents, name: str) -> list[tuple[int, int]]:
    (file,) = agents.data_directory.rglob(f"*{name}/*.writes.jsonl")
    entries: list[dict[str, Any]] = [json.loads(line) for line in file.read_text().splitlines()]
    return [(entry["at_us"], entry["active_power_watts"] or 0) for entry in entries]


@contextmanager
def _serving(inverters: dict[int, _TimedInverter]) -> Iterator[tuple[str, int]]:
    """Serve from a thread of its own; yield where."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="inverters")
    thread.start()
    line = PymodbusLine(inverters)
    try:
        asyncio.run_coroutine_threadsafe(line.start(), loop).result(10)
        yield line.address
        asyncio.run_coroutine_threadsafe(line.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
