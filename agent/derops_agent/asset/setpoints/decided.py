"""What a decision about a device returns: its state, the executions, and what is to be told."""

from dataclasses import dataclass, field

from derops_agent.asset.setpoints.state import DeviceState
from derops_agent.execution.windows import Executions
from derops_agent.ports import Setpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class StartShown:
    """The device shows a start now."""

    late_us: int
    """By how much that began after it was to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NotHeld:
    """The device has not taken a write for long enough."""

    modes: tuple[str, ...]
    held: Setpoints | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LandedLate:
    """Something that was sent before has landed over what was written last."""

    held: Setpoints
    wanted: Setpoints


@dataclass(frozen=True, slots=True, kw_only=True)
class NotConfirmed:
    """The device did not confirm a write."""

    message: str
    retry_us: int
    """After how long it is written again."""

    reverting: frozenset[str]
    """Uids of those that were to be taken off the device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """What follows from what a device showed, or was told."""

    state: DeviceState
    changed: Executions = field(default_factory=dict)
    """The executions that this changes; the others are left out, or are as they were."""

    to_tell: tuple[StartShown | NotHeld | LandedLate | NotConfirmed, ...] = ()
    """What goes to the log and the metrics, in this order."""
