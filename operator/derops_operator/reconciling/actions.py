"""Decisions, and what they may ask for.

The caller carries the actions out in the order given; then it shows the status.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from derops.lifecycle import Phase

REVERT_UNKNOWN = "RevertUnknown"
"""Reason of an Event, and of a condition: an agent did not confirm a revert in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AddFinalizer:
    """Hold the object: something outside Kubernetes depends on it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoveFinalizer:
    """Let go of the object; ``warning`` says what is not known, where something is not."""

    warning: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Warn:
    """Tell in an Event what is not known of a device that may not have been reverted."""

    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Submit:
    """Give the dispatch to all gateways, or change what they hold."""

    cancelled: bool = False
    cancel_reason: str = ""
    """Empty where the requester withdrew it."""

    known_phase: Phase = Phase.SUBMITTED


@dataclass(frozen=True, slots=True, kw_only=True)
class Settle:
    """Tell the gateways that the dispatch is finished; only after its terminal status is stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Delete the object, if it still is the one that was decided on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ApplyCertificate:
    """Create or change the asset's Certificate."""

    manifest: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCertificate:
    """Look at the asset's Certificate, which nobody watches."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Reissue:
    """Have cert-manager issue again, although it sees no need."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Approve:
    """Let the issuer sign a CertificateRequest."""

    request: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Deny:
    """Refuse a CertificateRequest for good."""

    request: str
    message: str


DispatchAction = AddFinalizer | RemoveFinalizer | Submit | Settle | Delete
AssetAction = (
    AddFinalizer
    | RemoveFinalizer
    | Warn
    | ApplyCertificate
    | ReadCertificate
    | Reissue
    | Approve
    | Deny
)


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchDecision:
    """What to do, in this order, and then the status to show."""

    actions: tuple[DispatchAction, ...] = ()
    status: dict[str, Any]
    again_us: int | None = None
    """When time alone may change the decision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetDecision:
    """What to do, in this order, and then the status to show."""

    actions: tuple[AssetAction, ...]
    status: dict[str, Any]
    again_us: int | None = None
    """When time alone may change the decision."""
