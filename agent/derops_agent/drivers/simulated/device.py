"""A simulated device: physics, registers and faults behind the agent's port."""

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import structlog

from derops.checks import MODES_BY_TYPE
from derops.errors import DeviceRefusedError, DeviceTimeoutError, DeviceUnreachableError
from derops.modes import Mode
from derops_agent.drivers.simulated.faults import FILE_NAME, FaultSource
from derops_agent.drivers.simulated.measuring import bad_point, measure
from derops_agent.drivers.simulated.memory import DeviceMemory, new_memory, recall
from derops_agent.drivers.simulated.noise import draw
from derops_agent.drivers.simulated.options import Options, parse_options
from derops_agent.drivers.simulated.stepping import (
    Physics,
    advance,
)
from derops_agent.drivers.simulated.storing import DeviceFiles
from derops_agent.ports import (
    Capability,
    Reading,
    Resolution,
    Reversion,
    Setpoints,
)

SAVE_US = 10_000_000
"""How old the stored state may get while nobody writes to the device."""

FIRMWARE = "simulated-1"
_MOST_UNSHOWN = 100
_FAULT_SEED = 104


class SimulatedDevice:
    """One simulated device; its setpoints and its charge outlive the process."""

    def __init__(
        self,
        options: Options,
        model: Physics[Any],
        memory: DeviceMemory,
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
        """Return what it says that it holds, which may be what it held some time ago."""
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
        faults, values = self._faults.faults, measure(self._memory, self._model, self._options)
        if "localControl" not in faults.bad_points:
            self._local_control = faults.local_control
        bad_points = tuple(map(bad_point, faults.bad_points))
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
        """Simulate the time since the state was stored, and add a lost entry to the account."""
        last = self._store.last_entry()
        if self._memory.writes > (last["number"] if last else 0):
            self._store.save(-1, {}, self._memory.entry(), durable=False)
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
        return self._memory.entry()

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

    async def _save(self, entry: dict[str, Any] | None, *, durable: bool) -> None:
        self._saves += 1
        self._saved_us = self._memory.wall_us
        # In a thread: a slow disk must not hold up the other devices of the process.
        await asyncio.to_thread(
            self._store.save, self._saves, self._document(), entry, durable=durable
        )

    async def _save_or_warn(self) -> None:
        """Store the state; an older one does as well, as the time since is simulated at opening."""
        try:
            await self._save(None, durable=False)
        except OSError as error:
            self._log.warning("state.save_failed", why=str(error))

    def _document(self) -> dict[str, Any]:
        return self._memory.document(self._options.model)


def open_device(
    options: Mapping[str, Any], state_file: Path, clock: Callable[[], int]
) -> SimulatedDevice:
    """Open a simulated device as it is now: it went on while the agent did not run.

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
    memory = recall(store, parsed, model) or new_memory(store, parsed, model, now_us)
    device = SimulatedDevice(parsed, model, memory, store, clock)
    device.begin(now_us)
    return device


def _resolutions(options: Options) -> dict[str, Resolution]:
    resolution = Resolution(step_watts=options.step_watts)
    return dict.fromkeys((Mode.ACTIVE_POWER, Mode.GENERATION_LIMIT, Mode.LOAD_LIMIT), resolution)
