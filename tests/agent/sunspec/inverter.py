"""SunSpec devices for a Modbus server, laid out from pysunspec2's model files.

They behave: what is enabled decides the power, timers run on a clock that is set by hand, and they
can be slow, silent, rude or wrong.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pymodbus.constants import ExcCodes
from sunspec2 import mb
from tests.agent.lines import Answer

from derops_agent.drivers.modbus_tcp import Table
from derops_agent.drivers.sunspec.models import Point, points_of

BASE = 40000

BATTERY: dict[int, dict[str, Any]] = {
    1: {"Mn": "Maker", "Md": "Battery 10", "Vr": "1.2"},
    701: {
        "W": 0,
        "W_SF": 0,
        "Hz": 5000,
        "Hz_SF": -2,
        "LNV": 2301,
        "V_SF": -1,
        "TotWhInj": 7_000_000,
        "TotWh_SF": 0,
    },
    702: {"WMaxRtg": 1000, "WMax": 1000, "WChaRteMax": 800, "WDisChaRteMax": 1000, "W_SF": 1},
    703: {"ES": 1},
    704: {
        "WMaxLimPctEna": 0,
        "WMaxLimPct": 1000,
        "WMaxLimPctRvrt": 1000,
        "WMaxLimPctEnaRvrt": 0,
        "WMaxLimPctRvrtTms": 0,
        "WMaxLimPct_SF": -1,
        "WSetEna": 0,
        "WSetMod": 0,
        "WSet": 0,
        "WSetRvrt": 0,
        "WSetEnaRvrt": 0,
        "WSetRvrtTms": 0,
        "WSet_SF": 0,
    },
    713: {"SoC": 505, "Pct_SF": -1, "WHRtg": 2000, "WH_SF": 1},
    715: {"LocRemCtl": 0},
}
SOLAR: dict[int, dict[str, Any]] = {
    1: {"Mn": "Maker", "Md": "Roof 5", "Vr": "9"},
    103: {"W": 4000, "W_SF": 0, "Hz": 5000, "Hz_SF": -2},
    120: {"WRtg": 5000, "WRtg_SF": 0},
    121: {"WMax": 5000, "WMax_SF": 0},
    123: {
        "Conn": 1,
        "Conn_RvrtTms": 0,
        "WMaxLimPct": 100,
        "WMaxLimPct_RvrtTms": 0,
        "WMaxLim_Ena": 0,
        "WMaxLimPct_SF": 0,
    },
}
STORAGE: dict[int, dict[str, Any]] = {
    1: {"Mn": "Maker", "Md": "Hybrid 5", "Vr": "3"},
    103: {"W": 0, "W_SF": 0, "Hz": 5000, "Hz_SF": -2},
    120: {"WRtg": 5000, "WRtg_SF": 0, "MaxChaRte": 4000, "MaxChaRte_SF": 0},
    124: {
        "WChaMax": 400,
        "WChaMax_SF": 1,
        "StorCtl_Mod": 0,
        "ChaState": 505,
        "ChaState_SF": -1,
        "OutWRte": 10_000,
        "InWRte": 10_000,
        "InOutWRte_SF": -2,
        "InOutWRte_RvrtTms": 0,
    },
}


@dataclass
class Inverter:
    """One unit; values are set and read by model and point, as registers have them."""

    models: Mapping[int, Mapping[str, Any]]
    now_seconds: float = 0.0
    refuse: ExcCodes | None = None
    """What writes are answered with."""

    hold: asyncio.Event | None = None
    """What every answer waits for."""

    ignores_values: bool = False
    """It takes writes and holds what it held."""

    keeps_value_while_enabled: bool = False
    """A new value counts only once the function was off."""

    base: int = BASE
    """Where its map begins."""

    instead: dict[int, ExcCodes | None] = field(default_factory=dict)
    """What a question that touches a register is answered with; None = it is not answered."""

    beyond: ExcCodes | None = ExcCodes.ILLEGAL_ADDRESS
    """The same of registers that are not in its map."""

    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when nobody waits for answers any more: what was not answered is let go."""

    written: list[tuple[int, str, Any]] = field(default_factory=list)
    """Every point that was written, in order."""

    def __post_init__(self) -> None:
        self._places: dict[int, int] = {}
        data = bytearray(b"SunS")
        for model_id, values in self.models.items():
            self._places[model_id] = len(data) // 2
            points = points_of(model_id)
            length = sum(point.registers for point in points.values()) - 2
            fixed = {"ID": model_id, "L": length, **values}
            for point in points.values():
                size = 2 * point.registers
                data += (
                    mb.point_type_info[point.type].to_data(fixed[point.name], size)
                    if point.name in fixed
                    else mb.create_unimpl_value(point.type, len=size)
                )
        data += b"\xff\xff\x00\x00"
        self.registers = [int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2)]
        self._timers: dict[str, float] = {}

    def get(self, model_id: int, name: str) -> Any:
        point = points_of(model_id)[name]
        at = self._places[model_id] + point.at
        words = self.registers[at : at + point.registers]
        data = b"".join(word.to_bytes(2) for word in words)
        return mb.point_type_info[point.type].data_to(data)

    def set(self, model_id: int, name: str, value: Any) -> None:
        point = points_of(model_id)[name]
        data = mb.point_type_info[point.type].to_data(value, 2 * point.registers)
        at = self._places[model_id] + point.at
        for number in range(point.registers):
            self.registers[at + number] = int.from_bytes(data[2 * number : 2 * number + 2])

    def live(self) -> None:
        """Let timers that ran out do their work, and the power follow."""
        for name, at in list(self._timers.items()):
            if self.now_seconds >= at:
                del self._timers[name]
                self._fall_back(name)
        if 701 in self.models:
            power = self.get(704, "WSet") if self.get(704, "WSetEna") == 1 else 0
            self.set(701, "W", power if self.get(703, "ES") else 0)

    async def answer(
        self, table: Table, address: int, count: int, values: list[int] | None
    ) -> Answer:
        if self.hold is not None:
            await self.hold.wait()
        self.live()
        for each in range(address, address + count):
            if each in self.instead:
                return await self._refuse(self.instead[each])
        first = address - self.base
        if table != "holding" or not 0 <= first <= len(self.registers) - count:
            return await self._refuse(self.beyond)
        if values is not None and self.refuse is not None:
            return self.refuse
        if values is not None:
            self._take(first, values)
        return self.registers[first : first + count]

    async def _refuse(self, code: ExcCodes | None) -> ExcCodes:
        if code is None:
            await self.over.wait()
        return code or ExcCodes.GATEWAY_NO_RESPONSE

    def at(self, model_id: int, name: str) -> int:
        """Return the first register of a point."""
        return self.base + self._places[model_id] + points_of(model_id)[name].at

    def _take(self, at: int, words: list[int]) -> None:
        while words:
            model_id, point = self._point_at(at)
            self._set(model_id, point.name, at, words[: point.registers])
            at, words = at + point.registers, words[point.registers :]

    def _set(self, model_id: int, name: str, at: int, words: list[int]) -> None:
        before = self.get(model_id, name)
        self.registers[at : at + len(words)] = words
        value = self.get(model_id, name)
        self.written.append((model_id, name, value))
        if self.ignores_values or (
            self.keeps_value_while_enabled and name == "WMaxLimPct" and self._limited(model_id)
        ):
            self.set(model_id, name, before)
        if name.endswith("RvrtTms"):
            self._timers.pop(name, None)
            if value:
                self._timers[name] = self.now_seconds + value

    def _limited(self, model_id: int) -> bool:
        return bool(self.get(model_id, "WMaxLimPctEna" if model_id == 704 else "WMaxLim_Ena"))

    def _point_at(self, at: int) -> tuple[int, Point]:
        for model_id, place in self._places.items():
            for point in points_of(model_id).values():
                if place + point.at == at:
                    return model_id, point
        raise AssertionError(f"a write at {at} that is the beginning of no point")

    def _fall_back(self, timer: str) -> None:
        match timer:
            case "WSetRvrtTms":
                self.set(704, "WSet", self.get(704, "WSetRvrt"))
                self.set(704, "WSetEna", self.get(704, "WSetEnaRvrt"))
            case "WMaxLimPctRvrtTms":
                self.set(704, "WMaxLimPct", self.get(704, "WMaxLimPctRvrt"))
                self.set(704, "WMaxLimPctEna", self.get(704, "WMaxLimPctEnaRvrt"))
            case "WMaxLimPct_RvrtTms":
                self.set(123, "WMaxLim_Ena", 0)
            case "InOutWRte_RvrtTms":
                self.set(124, "StorCtl_Mod", 0)
            case "Conn_RvrtTms":
                self.set(123, "Conn", 1)
