"""What was looked at, as values: in Kubernetes, and by the API. Pure.

What could not be looked at is a value as well: a ``Missing`` says what, why, and which right it
needs.
"""

from dataclasses import dataclass
from datetime import datetime

from derops.resources.base import Condition
from derops.resources.derassets import DERAsset

SYSTEM_NAMESPACE = "derops-system"
"""Where derops runs, unless its caller says otherwise."""


@dataclass(frozen=True, slots=True)
class Right:
    """A right of Kubernetes."""

    verb: str
    resource: str
    namespace: str = ""
    """Empty = in all namespaces."""

    def __str__(self) -> str:
        place = f"in namespace {self.namespace}" if self.namespace else "in all namespaces"
        return f"{self.verb} {self.resource} {place}"


@dataclass(frozen=True, slots=True)
class Missing:
    """Something that could not be looked at."""

    what: str
    why: str
    right: Right | None = None
    """The right that is missing; None = it is something else."""

    absent: bool = False
    """It does not exist; the caller may look."""


@dataclass(frozen=True, slots=True)
class Installation:
    """What the operator says of all, see ``derops.installation``."""

    observed_at: datetime
    """When it last said so; it says so again each minute."""

    conditions: tuple[Condition, ...]

    def find(self, kind: str) -> Condition | None:
        """Return a condition, or None."""
        return next((each for each in self.conditions if each.type == kind), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSeen:
    """An Event of Kubernetes."""

    at: datetime
    warning: bool
    kind: str
    """Kind of what it is about."""

    name: str
    namespace: str
    reason: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What runs a program of ours in the cluster."""

    kind: str
    name: str
    wanted: int
    ready: int
    restarts: int = 0
    problem: str = ""
    """Why it is not ready, as Kubernetes says it; empty = nothing is said."""


@dataclass(frozen=True, slots=True)
class CertificateSeen:
    """A Certificate of cert-manager."""

    name: str
    ready: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """The newest sample of an asset in the database."""

    at: datetime
    """By the agent's clock."""

    age_seconds: float
    received_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionSeen:
    """Something that happened to a connection of an agent, as the database has it."""

    at: datetime
    event: str
    reason: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Samples that an agent had to drop."""

    start: datetime
    end: datetime
    samples: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What the database knows of an asset, as the API tells it."""

    answers: bool = True
    """Whether the API reaches its database."""

    newest: Sample | None = None
    """None = there is none of the last two days."""

    connections: tuple[ConnectionSeen, ...] = ()
    """Of the last hour, the newest first."""

    gaps: tuple[Gap, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What was looked at that is the same for all assets."""

    installation: Installation | Missing
    workloads: tuple[Workload, ...] | Missing
    clock_ahead_seconds: float | None = None
    """How far the caller's clock is ahead of the API server's; None = not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """All that was looked at about one asset."""

    asset: DERAsset
    surroundings: Surroundings
    events: tuple[EventSeen, ...] | Missing = ()
    certificate: CertificateSeen | Missing | None = None
    """None = there is none, or it was not looked for."""

    stored: Stored | Missing | None = None
    """None = no access to the API was asked for."""
