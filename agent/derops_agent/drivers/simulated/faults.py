"""Faults of a simulated device, and the file that breaks a running one.

``faults.json`` beside the state file has the same keys as the option ``faults`` and stands in its
place as long as it exists. It is looked at whenever the device is used.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

FILE_NAME = "faults.json"
_NO_FILE = "options"


class _FaultSection(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)


Measured = Literal[
    "activePowerWatts",
    "reactivePowerVars",
    "voltageVolts",
    "frequencyHertz",
    "stateOfChargePercent",
    "energyInjectedWattHours",
    "energyAbsorbedWattHours",
    "temperatureCelsius",
    "availablePowerWatts",
    "localControl",
]


class WriteTimeout(_FaultSection):
    """Writes that are never answered: some at random, or the next few, whichever applies."""

    probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    next_writes: Annotated[int, Field(ge=0)] = 0
    acts: bool = False
    """Whether the device does what it was told although it does not answer."""


class LateReadBack(_FaultSection):
    """The device does at once what it is told, and shows it only later."""

    seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    begins_anew: bool = False
    """Whether each write begins the time anew, also for earlier writes."""


class Faults(_FaultSection):
    """All faults of a device; by default it has none."""

    write_timeout: WriteTimeout = WriteTimeout()
    refuse_writes: bool = False
    ignore_writes: bool = False
    """The device says yes and does nothing; it shows what it held before."""

    ignore_setpoints: bool = False
    """The device holds and shows what was written, and its power does not follow."""

    local_control: bool = False
    """Somebody on site switched the device to local control: it says so and refuses writes."""

    read_timeout: bool = False
    """The device takes writes and answers no question."""

    bad_points: tuple[Measured, ...] = ()
    """Quantities for which the device sends no number; it measures all others."""

    late_read_back: LateReadBack = LateReadBack()
    write_delay_seconds: Annotated[float, Field(ge=0, le=3600)] = 0.0
    offline_from: AwareDatetime | None = None
    offline_until: AwareDatetime | None = None

    def offline_at(self, now_us: int) -> bool:
        """Tell whether nothing reaches the device; a time without an end stays."""
        if self.offline_from is None and self.offline_until is None:
            return False
        begun = self.offline_from is None or now_us >= _microseconds(self.offline_from)
        ended = self.offline_until is not None and now_us >= _microseconds(self.offline_until)
        return begun and not ended


class FaultSource:
    """The present faults: those of the file if there is one, else those of the options."""

    def __init__(self, file: Path, options: Faults) -> None:
        self.faults = options
        self.stamp = _NO_FILE
        """Changes with the file's content; ``nextWrites`` counts from each change anew."""

        self._file, self._options = file, options
        self._log = structlog.get_logger("simulated")

    def refresh(self) -> Faults:
        """Read the file if it changed; one that cannot be read changes nothing."""
        try:
            found = self._file.stat()
        except OSError:
            self.faults, self.stamp = self._options, _NO_FILE
            return self.faults
        stamp = f"{found.st_ino}-{found.st_mtime_ns}-{found.st_size}"
        if stamp != self.stamp:
            try:
                self.faults = Faults.model_validate_json(self._file.read_bytes())
                self.stamp = stamp
            except (OSError, ValidationError) as error:
                # Perhaps half written: it is read again at the next use.
                problem = " ".join(str(error).split())
                self._log.warning("faults.unreadable", file=str(self._file), why=problem)
        return self.faults


def write_faults(state_file: Path, **faults: Any) -> None:
    """Break the running device whose state is ``state_file``; no faults repair it.

    Args:
        state_file: Of the device.
        **faults: As in the option ``faults``: camelCase, values as in JSON.

    Raises:
        ValidationError: The device would not understand them.
    """
    Faults.model_validate_json(content := json.dumps(faults))
    new = state_file.with_name(FILE_NAME + ".new")
    new.write_text(content, encoding="utf-8")
    new.replace(state_file.with_name(FILE_NAME))


def _microseconds(moment: datetime) -> int:
    return round(moment.timestamp() * 1e6)
