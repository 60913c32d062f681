"""What a simulated device keeps over a restart, and how it is stored."""

from dataclasses import asdict, dataclass
from typing import Any

from derops_agent.drivers.simulated.options import Options
from derops_agent.drivers.simulated.stepping import DAY_SECONDS, HOUR_SECONDS, Meter, Physics, Plant
from derops_agent.drivers.simulated.storing import DeviceFiles
from derops_agent.ports import Setpoints

_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """All that a device keeps over a restart of the agent."""

    wall_us: int
    simulated_us: int
    plant: Plant[Any]
    setpoints: Setpoints
    shown: Setpoints
    """What the device says that it holds."""

    writes: int = 0
    """How many writes it has taken; the number of the last one in its account."""

    written_us: int = 0
    attempts: int = 0
    """How many writes reached the device, taken or not."""

    faults_stamp: str = ""
    reversion: Setpoints | None = None
    """What it holds once its own timer runs out; None = no timer runs."""

    reverts_at_us: int = 0
    unshown: tuple[tuple[int, Setpoints], ...] = ()
    """What the device held and shows later, and since when; the last is what it holds."""

    timeouts: int = 0
    """How many of the ``nextWrites`` of these faults have timed out."""

    def document(self, model: str) -> dict[str, Any]:
        """Return it as it is stored, for a device of ``model``."""
        return {"version": _VERSION, "model": model, **asdict(self)}

    def entry(self) -> dict[str, Any]:
        """Return the last write as the device's account has it."""
        return {"number": self.writes, "at_us": self.written_us, **asdict(self.setpoints)}


def recall(store: DeviceFiles, options: Options, model: Physics[Any]) -> DeviceMemory | None:
    """Return what a device has stored; None if nothing, or what is not of its kind."""
    found = store.load()
    if found is None:
        return None
    if (found.pop("version", None), found.pop("model", None)) != (_VERSION, options.model):
        store.set_aside(f"is not a {options.model} of version {_VERSION}")
        return None
    try:
        plant, reversion = found.pop("plant"), found.pop("reversion", None)
        return DeviceMemory(
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


def new_memory(
    store: DeviceFiles, options: Options, model: Physics[Any], now_us: int
) -> DeviceMemory:
    """Return the memory of a new device: nothing but where its account goes on."""
    last = store.last_entry()
    return DeviceMemory(
        wall_us=now_us,
        simulated_us=_first_simulated_us(now_us, options.start_at_hour),
        plant=Plant(state=model.begin(), meter=Meter()),
        setpoints=Setpoints(),
        shown=Setpoints(),
        writes=last["number"] if last else 0,  # that of a device set aside goes on
    )


def _first_simulated_us(now_us: int, start_at_hour: float | None) -> int:
    if start_at_hour is None:
        return now_us
    day_us = round(DAY_SECONDS * 1e6)
    return now_us - now_us % day_us + round(start_at_hour * HOUR_SECONDS * 1e6)
