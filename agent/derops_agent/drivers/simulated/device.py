"""A simulated device: physics, registers and faults behind the agent's port."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from pydantic.alias_generators import to_camel

from derops.checks import MODES_BY_TYPE
from derops.errors import DeviceRefusedError, DeviceTimeoutError, DeviceUnreachableError
from derops.modes import Mode
from derops.wire.v1 import agent_pb2
from derops_agent.drivers.simulated.faults import FILE_NAME, FaultSource
from derops_agent.drivers.simulated.noise import draw, smooth
from derops_agent.drivers.simulated.options import Options, parse_options
from derops_agent.drivers.simulated.stepping import (
    DAY_SECONDS,
    HOUR_SECONDS,
    Meter,
    Physics,
    Plant,
    advance,
)
from derops_agent.drivers.simulated.storing import DeviceFiles
from derops_agent.ports import (
    BadPoint,
    Capability,
    Reading,
    Resolution,
    Reversion,
    Setpoints,
)

SAVE_US = 10_000_000
"""How old the stored state may get while nothing is written to the device."""

FIRMWARE = "simulated-1"
_VERSION = 1
_QUANTITIES = {to_camel(name.lower()): number for name, number in agent_pb2.Quantity.items()}
_MOST_UNSHOWN = 100
_NOMINAL_VOLTS, _NOMINAL_HERTZ = 230.0, 50.0
_VOLTAGE_SEED, _FREQUENCY_SEED, _METER_SEED, _FAULT_SEED = 101, 102, 103, 104


@dataclass(frozen=True, slots=True, kw_only=True)
class _Memory:
    """All that a device keeps over a restart of the agent."""

    wall_us: int
    simulated_us: int
    plant: Plant[Any]
    setpoints: Setpoints
    shown: Setpoints
    """What it says that it holds."""

    writes: int = 0
    """How many writes it has taken; the number of the last one in its account."""

    written_us: int = 0
    attempts: int = 0
    """How many writes reached it, taken or not."""

    faults_stamp: str = ""
    reversion: Setpoints | None = None
    """What it holds once its own timer runs out; None = no timer runs."""

    reverts_at_us: int = 0
    unshown: tuple[tuple[int, Setpoints], ...] = ()
    """What it has held and says later, and since when; the last is what it holds."""

    timeouts: int = 0
    """How many of the ``nextWrites`` of these faults have timed out."""


class SimulatedDevice:
    """One simulated device; what it holds and what it has stored outlive the process."""

    def __init__(
        self,
        options: Options,
        model: Physics[Any],
        memory: _Memory,
        store: DeviceFiles,
        clock: Callable[[], int],
    ) -> None:
        self._options, self._model, self._memory = options, model, memory
        self._store, self._clock = store, clock
        self._faults = FaultSource(store.state_file.with_name(FILE_NAME), options.faults)
        self._local_control = False
        self._saves = 0
        self._log = structlog.get_logger("simulated")
        self._saved_us = 0
        self._capability = Capability(
            modes=MODES_BY_TYPE[options.type],
            driver="simulated",
            firmware=FIRMWARE,
            max_injection_watts=options.injection_watts,
            max_absorption_watts=options.absorption_watts,
            can_measure=True,
            reversion=options.reversion_max_seconds is not None,
            resolutions={} if options.step_watts == 1 else _resolutions(options),
        )

    @property
    def capability(self) -> Capability:
        """What the model can do."""
        return self._capability

    async def write(self, setpoints: Setpoints, reversion: Reversion | None = None) -> int | None:
        """Hold ``setpoints``; stored and in the device's account before this returns.

        Returns:
            After how many seconds it reverts by itself; None without the option
            ``reversionMaxSeconds``.

        Raises:
            DeviceTimeoutError: A fault, or the disk, kept the answer back.
            DeviceUnreachableError: It is offline.
            DeviceRefusedError: Beyond the ratings, a mode that it has not, or a fault.
        """
        await asyncio.sleep(self._faults.refresh().write_delay_seconds)
        now_us = self._catch_up()
        faults = self._faults.faults
        self._check_reachable(now_us)
        if faults.local_control:
            raise DeviceRefusedError("the device is in local control and takes no setpoint")
        if faults.refuse_writes:
            raise DeviceRefusedError("the device refuses setpoints (fault refuseWrites)")
        self._check(setpoints)
        silent = self._falls_silent()
        entry = armed_seconds = None
        if not faults.ignore_writes and (faults.write_timeout.acts or not silent):
            entry = self._hold(setpoints, now_us)
            armed_seconds = self._arm(reversion, now_us)
        try:
            await self._save(entry, durable=entry is not None)
        except OSError as error:
            raise DeviceTimeoutError(f"the write could not be stored: {error}") from error
        if silent:
            raise DeviceTimeoutError("the device did not answer the write")
        return armed_seconds

    async def read_setpoints(self) -> Setpoints:
        """Return what it holds.

        Raises:
            DeviceTimeoutError: A fault kept the answer back.
        """
        self._check_answering(now_us := self._catch_up())
        return self._show(now_us)

    def _show(self, now_us: int) -> Setpoints:
        """Return what it says that it holds: what it has held some time ago."""
        late, memory = self._faults.faults.late_read_back, self._memory
        pending = memory.unshown[-1:] if late.begins_anew else memory.unshown
        due = [each for each in pending if each[0] + late.seconds * 1e6 <= now_us]
        if due:
            rest = tuple(each for each in pending if each not in due)
            self._memory = replace(memory, shown=due[-1][1], unshown=rest)
        return self._memory.shown

    async def sample(self) -> Reading:
        """Measure.

        Raises:
            DeviceTimeoutError: A fault kept the answer back.
        """
        now_us = self._catch_up()
        if not 0 <= now_us - self._saved_us < SAVE_US:
            await self._save_or_warn()
        self._check_answering(now_us)
        faults, values = self._faults.faults, self._measure()
        if "localControl" not in faults.bad_points:
            self._local_control = faults.local_control
        bad_points = tuple(map(_bad_point, faults.bad_points))
        for bad in bad_points:
            values.pop(bad.quantity, None)
        return Reading(
            at_us=now_us,
            values=values,
            local_control=self._local_control,
            bad_points=bad_points,
        )

    async def close(self) -> None:
        """Store the state; the device goes on as it was told."""
        self._catch_up()
        await self._save_or_warn()

    def begin(self, now_us: int) -> None:
        """Make up for the time since the state was stored, and for a lost entry."""
        last = self._store.last_entry()
        if self._memory.writes > (last["number"] if last else 0):
            self._store.save(-1, {}, self._entry(), durable=False)
        self._catch_up()
        self._saves, self._saved_us = 1, now_us
        self._store.save(self._saves, self._document(), durable=True)

    def _catch_up(self) -> int:
        self._faults.refresh()
        now_us = self._clock()
        reversion, at_us = self._memory.reversion, self._memory.reverts_at_us
        if reversion is not None and now_us >= at_us:
            self._live_until(max(at_us, self._memory.wall_us))
            entry = self._hold(reversion, at_us)
            self._saves += 1
            self._store.save(self._saves, self._document(), entry, durable=True)
        self._live_until(now_us)
        return now_us

    def _live_until(self, now_us: int) -> None:
        faults, memory = self._faults.faults, self._memory
        # A wall clock that is set back takes the time of the sun with it, but undoes no energy.
        passed_us = round((now_us - memory.wall_us) * self._options.speed)
        until_us = memory.simulated_us + passed_us
        plant = advance(
            self._model,
            memory.plant,
            Setpoints() if faults.ignore_setpoints else memory.setpoints,
            from_seconds=memory.simulated_us / 1e6,
            to_seconds=until_us / 1e6,
            rated_watts=self._options.rated_watts,
        )
        self._memory = replace(memory, wall_us=now_us, simulated_us=until_us, plant=plant)

    def _check_reachable(self, now_us: int) -> None:
        if self._faults.faults.offline_at(now_us):
            raise DeviceUnreachableError("the device is offline")

    def _check_answering(self, now_us: int) -> None:
        self._check_reachable(now_us)
        if self._faults.faults.read_timeout:
            raise DeviceTimeoutError("the device did not answer the read")

    def _check(self, setpoints: Setpoints) -> None:
        wanted = {
            Mode.ACTIVE_POWER: setpoints.active_power_watts,
            Mode.GENERATION_LIMIT: setpoints.max_generation_watts,
            Mode.LOAD_LIMIT: setpoints.max_load_watts,
        }
        for mode, watts in wanted.items():
            if watts is not None and mode not in self._capability.modes:
                has = ", ".join(sorted(self._capability.modes))
                raise DeviceRefusedError(
                    f"a simulated {self._options.model} has no {mode}; it has: {has}"
                )
            if watts is not None and watts < 0 and mode != Mode.ACTIVE_POWER:
                raise DeviceRefusedError(f"{mode} of {watts} W is below 0")
        power = setpoints.active_power_watts or 0
        least, most = -self._options.absorption_watts, self._options.injection_watts
        if not least <= power <= most:
            raise DeviceRefusedError(
                f"an active power of {power} W is outside the rating of {least} W to {most} W"
            )

    def _falls_silent(self) -> bool:
        """Tell whether this write is one that is not answered, and count it."""
        fault, memory = self._faults.faults.write_timeout, self._memory
        timeouts = memory.timeouts if memory.faults_stamp == self._faults.stamp else 0
        attempts = memory.attempts + 1
        counted = timeouts < fault.next_writes
        drawn = draw(self._options.seed + _FAULT_SEED, attempts) < fault.probability
        self._memory = replace(
            memory,
            attempts=attempts,
            faults_stamp=self._faults.stamp,
            timeouts=timeouts + counted,
        )
        return counted or drawn

    def _hold(self, setpoints: Setpoints, now_us: int) -> dict[str, Any]:
        setpoints = self._round(setpoints)
        self._memory = replace(
            self._memory,
            setpoints=setpoints,
            writes=self._memory.writes + 1,
            written_us=now_us,
            unshown=(*self._memory.unshown[-_MOST_UNSHOWN:], (now_us, setpoints)),
            reversion=None,
        )
        return self._entry()

    def _round(self, setpoints: Setpoints) -> Setpoints:
        step = self._options.step_watts
        rounded = {
            name: watts - int(math.copysign(abs(watts) % step, watts))
            for name, watts in asdict(setpoints).items()
            if name != "energized" and watts is not None
        }
        return replace(setpoints, **rounded)

    def _arm(self, reversion: Reversion | None, now_us: int) -> int | None:
        most_seconds = self._options.reversion_max_seconds
        if reversion is None or most_seconds is None:
            return None
        seconds = min(reversion.after_seconds, most_seconds)
        self._memory = replace(
            self._memory,
            reversion=self._round(reversion.setpoints),
            reverts_at_us=now_us + seconds * 1_000_000,
        )
        return seconds

    def _entry(self) -> dict[str, Any]:
        return {
            "number": self._memory.writes,
            "at_us": self._memory.written_us,
            **asdict(self._memory.setpoints),
        }

    async def _save(self, entry: dict[str, Any] | None, *, durable: bool) -> None:
        self._saves += 1
        self._saved_us = self._memory.wall_us
        # In a thread: a slow disk must not hold up the other devices of the process.
        await asyncio.to_thread(
            self._store.save, self._saves, self._document(), entry, durable=durable
        )

    async def _save_or_warn(self) -> None:
        """Store the state; an older one does as well, since time is made up for at opening."""
        try:
            await self._save(None, durable=False)
        except OSError as error:
            self._log.warning("state.save_failed", error=str(error))

    def _measure(self) -> dict[int, float]:
        memory, seed = self._memory, self._options.seed
        at, meter = memory.simulated_us / 1e6, memory.plant.meter
        share = meter.power_watts / self._options.rated_watts
        error = 1 + 0.002 * smooth(seed + _METER_SEED, at, 3)
        volts = _NOMINAL_VOLTS + 2 * share + smooth(seed + _VOLTAGE_SEED, at, 20)
        values: dict[int, float | None] = {
            agent_pb2.ACTIVE_POWER_WATTS: meter.power_watts * error,
            agent_pb2.REACTIVE_POWER_VARS: 0.0,
            agent_pb2.VOLTAGE_VOLTS: volts,
            # One grid: all devices see the same frequency.
            agent_pb2.FREQUENCY_HERTZ: _NOMINAL_HERTZ + 0.03 * smooth(_FREQUENCY_SEED, at, 15),
            agent_pb2.STATE_OF_CHARGE_PERCENT: self._model.state_of_charge_percent(
                memory.plant.state
            ),
            agent_pb2.ENERGY_INJECTED_WATT_HOURS: meter.injected_watt_hours,
            agent_pb2.ENERGY_ABSORBED_WATT_HOURS: meter.absorbed_watt_hours,
            agent_pb2.TEMPERATURE_CELSIUS: meter.temperature_celsius,
            agent_pb2.SETPOINT_WATTS: memory.setpoints.active_power_watts,
            agent_pb2.MAX_GENERATION_WATTS: memory.setpoints.max_generation_watts,
            agent_pb2.MAX_LOAD_WATTS: memory.setpoints.max_load_watts,
            agent_pb2.AVAILABLE_POWER_WATTS: self._model.available_watts(memory.plant.state, at),
        }
        return {quantity: float(value) for quantity, value in values.items() if value is not None}

    def _document(self) -> dict[str, Any]:
        return {"version": _VERSION, "model": self._options.model, **asdict(self._memory)}


def open_device(
    options: Mapping[str, Any], state_file: Path, clock: Callable[[], int]
) -> SimulatedDevice:
    """Open a simulated device as it is now: it has gone on since it was last seen.

    Args:
        options: Everything of the asset's ``driver`` section but ``kind``.
        state_file: Where the device lives; ``faults.json`` and its account lie beside it.
        clock: The wall clock in microseconds since 1970 UTC.

    Raises:
        DriverOptionError: An option is wrong; the message names it and what is allowed.
    """
    parsed = parse_options(options)
    model = parsed.build()
    store = DeviceFiles(state_file)
    now_us = clock()
    remembered = _remember(store, parsed, model)
    last = store.last_entry()
    memory = remembered or _Memory(
        wall_us=now_us,
        simulated_us=_first_simulated_us(now_us, parsed.start_at_hour),
        plant=Plant(state=model.begin(), meter=Meter()),
        setpoints=Setpoints(),
        shown=Setpoints(),
        writes=last["number"] if last else 0,  # the account of a device set aside goes on
    )
    device = SimulatedDevice(parsed, model, memory, store, clock)
    device.begin(now_us)
    return device


def _resolutions(options: Options) -> dict[str, Resolution]:
    resolution = Resolution(step_watts=options.step_watts)
    return dict.fromkeys((Mode.ACTIVE_POWER, Mode.GENERATION_LIMIT, Mode.LOAD_LIMIT), resolution)


def _remember(store: DeviceFiles, options: Options, model: Physics[Any]) -> _Memory | None:
    found = store.load()
    if found is None:
        return None
    if (found.pop("version", None), found.pop("model", None)) != (_VERSION, options.model):
        store.set_aside(f"is not a {options.model} of version {_VERSION}")
        return None
    try:
        plant, reversion = found.pop("plant"), found.pop("reversion", None)
        return _Memory(
            plant=Plant(state=model.restore(plant["state"]), meter=Meter(**plant["meter"])),
            shown=Setpoints(**found.pop("shown", found["setpoints"])),
            setpoints=Setpoints(**found.pop("setpoints")),
            unshown=tuple((at_us, Setpoints(**each)) for at_us, each in found.pop("unshown", ())),
            reversion=Setpoints(**reversion) if reversion else None,
            **found,
        )
    except (TypeError, KeyError) as error:
        store.set_aside(f"has other fields: {error}")
        return None


def _bad_point(name: str) -> BadPoint:
    return BadPoint(
        name=name,
        raw="0x7fc00000",
        problem="no number (fault badPoints)",
        quantity=_QUANTITIES.get(name, 0),
    )


def _first_simulated_us(now_us: int, start_at_hour: float | None) -> int:
    if start_at_hour is None:
        return now_us
    day_us = round(DAY_SECONDS * 1e6)
    return now_us - now_us % day_us + round(start_at_hour * HOUR_SECONDS * 1e6)
