"""One figure of a benchmark."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """A value beside a limit.

    Attributes:
        name: What was measured; P1 to P17 are explained in docs/development/benchmarks.md.
        value: The figure.
        unit: Of value and limit.
        limit: What the machine does at best in this run, or the figure that was promised.
        goal: What the ratio should be: ``>= 0.25`` or ``<= 2``.
    """

    name: str
    value: float
    unit: str
    limit: float
    goal: str = "<= 1"

    def as_dict(self) -> dict[str, Any]:
        """Return it as it is printed; ratio = value / limit."""
        return {
            "name": self.name,
            "value": round(self.value, 3),
            "unit": self.unit,
            "limit": round(self.limit, 3),
            "ratio": round(self.value / self.limit, 3) if self.limit else None,
            "goal": self.goal,
        }
