"""What a probe finds out about a device, for people and for programs."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from derops.modes import Mode
from derops.wire.v1 import agent_pb2
from derops_agent.ports import BadPoint, Capability, Resolution

COMPLETE, UNUSABLE, LIMITED = 0, 1, 3
"""Exit codes; 2 is a wrong option or profile."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferedMode:
    """A setpoint mode, and how the agent would hold it."""

    mode: str
    by: str
    timer: str
    """Where the device's own reversion timer is; empty = it has none."""

    holds: str = ""
    """Which values it can be given, in words; empty = the mode has none, or it is not known."""

    step_watts: float | None = None
    """The same in numbers; None = it is not known, or there is no such limit."""

    least_watts: float | None = None
    most_watts: float | None = None

    def means(self) -> str:
        """Return how it is held, for people."""
        timer = f"device timer {self.timer}" if self.timer else "no timer in the device"
        holds = f", holds {self.holds}" if self.holds else ""
        return f"by {self.by}, {timer}{holds}"


def values_of(resolution: Resolution | None) -> dict[str, Any]:
    """Return the fields of a mode that say which values it can be given."""
    if resolution is None:
        return {}
    least, most = resolution.least_watts, resolution.most_watts
    return {
        "holds": str(resolution),
        "step_watts": resolution.step_watts,
        "least_watts": least if isfinite(least) else None,
        "most_watts": most if isfinite(most) else None,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What all drivers can say; each adds what the device consists of."""

    device: str
    modes: list[OfferedMode]
    ratings: dict[str, float]
    measured: dict[str, float]
    held: dict[str, Any]
    local_control: bool
    problems: list[str]
    """What keeps an agent from using it at all."""

    limits: list[str]
    """What will not work on it, mode by mode, though an agent can use it."""

    @property
    def usable(self) -> bool:
        """Whether an agent could open it, and control it in any way."""
        return not self.problems

    @property
    def exit_code(self) -> int:
        """What the program ends with."""
        if self.problems:
            return UNUSABLE
        return LIMITED if self.limits else COMPLETE

    def as_json(self) -> str:
        """Return it for programs."""
        return json.dumps({**asdict(self), "usable": self.usable}, indent=2)

    def as_text(self) -> str:
        """Return it for people."""
        lines = [f"device    {self.device or 'does not say what it is'}", ""]
        lines += [*self.parts(), "", "modes"]
        lines += [f"  {mode.mode:<16} {mode.means()}" for mode in self.modes] or ["  none"]
        for title, facts in (
            ("ratings", self.ratings),
            ("measured", self.measured),
            ("held now", self.held),
        ):
            lines += ["", title]
            lines += [f"  {name:<28} {value}" for name, value in facts.items()] or ["  nothing"]
        lines += ["", f"control   {'LOCAL' if self.local_control else 'remote'}"]
        lines += [f"problem   {problem}" for problem in self.problems]
        lines += [f"limit     {limit}" for limit in self.limits]
        return "\n".join(lines)

    def parts(self) -> list[str]:
        """Return lines about what the device consists of."""
        raise NotImplementedError


def limits_of(
    capability: Capability, measured: Iterable[int], bad_points: Iterable[BadPoint]
) -> list[str]:
    """Return what will not work on a device, a line for each.

    Args:
        capability: What it says of itself.
        measured: Quantities that came with a sample.
        bad_points: What did not come with it.
    """
    limits = [*_out_of_range(capability)]
    if agent_pb2.ACTIVE_POWER_WATTS not in measured:
        limits += [
            f"{mode}: verify: Required is refused (CannotVerify): no active power is measured"
            for mode in sorted(capability.modes)
        ]
    limits += [
        f"{bad.name} is not measured: {bad.problem}" + (f" ({bad.raw})" if bad.raw else "")
        for bad in bad_points
    ]
    return limits


def _out_of_range(capability: Capability) -> Iterator[str]:
    out_watts, in_watts = capability.max_injection_watts, capability.max_absorption_watts
    for mode, resolution in sorted(capability.resolutions.items()):
        if mode == Mode.ACTIVE_POWER:
            yield from _too_little(mode, "inject", resolution.most_watts, out_watts)
            yield from _too_little(mode, "absorb", -resolution.least_watts, in_watts)
        else:
            rated_watts = in_watts if mode == Mode.LOAD_LIMIT else out_watts
            yield from _too_little(mode, "be set", resolution.most_watts, rated_watts)


def _too_little(mode: str, verb: str, most_watts: float, rated_watts: int) -> Iterator[str]:
    if most_watts <= 0 < rated_watts:
        yield f"{mode}: cannot {verb}: its register holds no such value"
    elif most_watts < rated_watts:
        yield (
            f"{mode}: can {verb} to {most_watts:g} W at most, of {rated_watts} W: "
            "its register holds no more"
        )
