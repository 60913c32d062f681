"""What a probe finds out about a device, for people and for programs."""

import json
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from derops_agent.ports import Resolution


@dataclass(frozen=True, slots=True, kw_only=True)
class Mode:
    """A setpoint mode, and by what the agent would hold it."""

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
    modes: list[Mode]
    ratings: dict[str, float]
    measured: dict[str, float]
    held: dict[str, Any]
    local_control: bool
    problems: list[str]
    """What keeps the agent from using it, or will."""

    @property
    def usable(self) -> bool:
        """Whether an agent could open it."""
        return not self.problems

    def as_json(self) -> str:
        """Return it for programs."""
        return json.dumps({**asdict(self), "usable": self.usable}, indent=2)

    def as_text(self) -> str:
        """Return it for people."""
        lines = [f"device    {self.device or 'does not say what it is'}", ""]
        lines += [*self.parts(), "", "modes"]
        lines += [
            f"  {mode.mode:<16} by {mode.by}, "
            + (f"device timer {mode.timer}" if mode.timer else "no timer in the device")
            + (f", holds {mode.holds}" if mode.holds else "")
            for mode in self.modes
        ] or ["  none"]
        for title, facts in (
            ("ratings", self.ratings),
            ("measured", self.measured),
            ("held now", self.held),
        ):
            lines += ["", title]
            lines += [f"  {name:<28} {value}" for name, value in facts.items()] or ["  nothing"]
        lines += ["", f"control   {'LOCAL' if self.local_control else 'remote'}"]
        lines += [f"problem   {problem}" for problem in self.problems]
        return "\n".join(lines)

    def parts(self) -> list[str]:
        """Return lines about what the device consists of."""
        raise NotImplementedError
