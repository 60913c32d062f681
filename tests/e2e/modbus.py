"""Modbus devices behind the stack's agents: real servers, and registers as the account."""

import asyncio
import json
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pymodbus.constants import ExcCodes
from tests.agent.lines import Answer, GoLine, Line, PymodbusLine
from tests.agent.modbus.registers import battery
from tests.agent.sunspec.inverter import BATTERY, Inverter
from tests.e2e.acting import Pilot, battery_manifest
from tests.stack.simulation import DRIVER_ANNOTATION
from tests.waiting import Starved

from derops_agent.drivers.modbus_tcp import Table

PROFILE = Path(__file__).resolve().parents[2] / "examples" / "profiles" / "battery.yaml"

_T = TypeVar("_T")


class Unit(Protocol):
    """A device of the agent's tests; its timers run on ``now_seconds``."""

    now_seconds: float
    ignores_values: bool

    def live(self) -> None: ...

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer: ...


@dataclass(slots=True)
class Recorded:
    """A device on the clock of the wall, which writes down what its registers hold."""

    unit: Unit
    account: list[tuple[float, int]] = field(default_factory=lambda: [(time.time(), 0)])
    """Since when it holds what active power in watts; released counts as 0."""

    is_dead: bool = False
    """Whether the server has to answer in its place that it does not."""

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer:
        if self.is_dead:
            return ExcCodes.GATEWAY_NO_RESPONSE
        self.look()
        got = await self.unit.answer(table, address, count, values)
        self.look()
        return got

    def look(self) -> None:
        """Let the device's own timers work, and note what changed."""
        self.unit.now_seconds = time.monotonic()
        self.unit.live()
        watts = held_watts(self.unit)
        if watts != self.account[-1][1]:
            self.account.append((time.time(), watts))

    @property
    def powers(self) -> list[int]:
        """What it held, in order."""
        return [watts for _, watts in self.account]

    def seconds_at(self, watts: int) -> float:
        """Return for how long it has held a value."""
        ends = [at for at, _ in self.account[1:]] + [time.time()]
        return sum(
            end - at for (at, held), end in zip(self.account, ends, strict=True) if held == watts
        )


def held_watts(unit: Unit) -> int:
    """Return the active power that the registers hold."""
    if isinstance(unit, Inverter):
        return int(unit.get(704, "WSet")) if unit.get(704, "WSetEna") == 1 else 0
    words = unit.holding  # type: ignore[attr-defined]
    raw = words[200] - 65536 if words[200] >= 32768 else words[200]
    return -10 * raw if words[201] == 2 else 0


class Bus:
    """One server with a device behind it, or several, on a thread of its own."""

    starved: Starved

    def __init__(self, line: type[Line], options: dict[str, Any], *units: Unit) -> None:
        self.devices = {number: Recorded(unit) for number, unit in enumerate(units, start=1)}
        self.device = self.devices[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="modbus")
        self._line, self._options = line(self.devices), options

    def __enter__(self) -> "Bus":
        self._thread.start()
        self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.disconnect()
        finally:  # else this process would never end
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    @property
    def driver(self) -> dict[str, Any]:
        """The driver section of an agent that controls it."""
        host, port = self._line.address
        return {**self._options, "host": host, "port": port, "timeoutSeconds": 2}

    @property
    def thread_id(self) -> int:
        """Of the thread that answers for the device."""
        assert self._thread.native_id is not None
        return self._thread.native_id

    def connect(self) -> None:
        """Have the server listen."""
        self._do(self._line.start())

    def disconnect(self) -> None:
        """End all connections and listen no more; the device keeps what it holds."""
        self._do(self._line.stop())

    def look(self) -> Recorded:
        """Return the device as it is now."""

        async def look() -> None:
            self.device.look()

        self._do(look())
        return self.device

    def told_truly(
        self, status: dict[str, Any], watts: int, tolerance_seconds: float = 1.0
    ) -> bool:
        """Return whether status says for how long the device has held a value."""
        told_seconds: float = status["execution"]["activeSeconds"]
        most_seconds = tolerance_seconds + self.starved.seconds()
        return abs(told_seconds - self.look().seconds_at(watts)) < most_seconds

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


def sunspec_bus() -> Bus:
    """Return a SunSpec battery of 10 kW on pymodbus's server."""
    return Bus(PymodbusLine, {"kind": "sunspec"}, Inverter(BATTERY))


def profiled_bus(units: int = 1) -> Bus:
    """Return batteries of examples/profiles on the other server; the first is unit 1."""
    options = {"kind": "modbus", "profile": str(PROFILE)}
    return Bus(GoLine, options, *(battery() for _ in range(units)))


@contextmanager
def controlled(pilot: Pilot, bus: Bus, name: str = "battery", **spec: Any) -> Iterator[Bus]:
    """Run a bus with an agent that is connected; the device must let go before the bus ends."""
    with bus:
        manifest = battery_manifest(name, **spec)
        manifest["metadata"]["annotations"][DRIVER_ANNOTATION] = json.dumps(bus.driver)
        pilot.apply(manifest)
        pilot.wait_for_condition("derasset", name, "Connected", "True")
        bus.starved = pilot.starved(name, bus.thread_id)
        yield bus
