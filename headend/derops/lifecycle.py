"""The life of a dispatch: phases, their order, and the reasons.

Phases are ranked, not sequenced: reports may arrive late, twice or out of order, and the furthest
one stands. A terminal phase never changes.
"""

from enum import StrEnum

MESSAGE_LIMIT = 1024
"""Characters of a message in status; the CRDs allow no more."""


class Phase(StrEnum):
    """Where a dispatch stands; for display, conditions decide."""

    SUBMITTED = "Submitted"
    """The resource exists and passed the operator's checks, or waits for its asset to exist."""

    SENT = "Sent"
    """A gateway wrote it to the live stream of the asset's agent."""

    ACKED = "Acked"
    """The agent checked, stored and accepted it."""

    ACTIVE = "Active"
    """The device write returned success and the window is open."""

    COMPLETE = "Complete"
    """The window ended and the agent reverted the device."""

    EXPIRED = "Expired"
    """The window passed and it is proven that no agent accepted it."""

    FAILED = "Failed"
    """It was accepted and not carried out as promised, or the outcome is not known."""

    REJECTED = "Rejected"
    """Refused by a rule before anything was done."""

    CANCELLED = "Cancelled"
    """Withdrawn; the device is reverted, or there was nothing to revert."""

    SUPERSEDED = "Superseded"
    """Another dispatch for the same asset and mode took its place."""

    @property
    def terminal(self) -> bool:
        """Whether nothing follows."""
        return self in TERMINAL

    @property
    def rank(self) -> int:
        """How far along: the greater wins, all terminal phases are equal."""
        return _RANKS.get(self, len(_RANKS))


TERMINAL = frozenset(
    {
        Phase.COMPLETE,
        Phase.EXPIRED,
        Phase.FAILED,
        Phase.REJECTED,
        Phase.CANCELLED,
        Phase.SUPERSEDED,
    }
)
_RANKS = {Phase.SUBMITTED: 0, Phase.SENT: 1, Phase.ACKED: 2, Phase.ACTIVE: 3}


class Reason(StrEnum):
    """Why a dispatch is in its phase; docs/reference/reasons.md explains each to its readers."""

    VALIDATED = "Validated"
    ASSET_NOT_FOUND = "AssetNotFound"
    DELIVERED = "DeliveredToSession"
    ACCEPTED = "Accepted"
    APPLIED = "Applied"
    WINDOW_ENDED = "WindowEnded"
    LIMIT_EXCEEDED = "LimitExceeded"
    LOCAL_LIMIT_EXCEEDED = "LocalLimitExceeded"
    MODE_NOT_SUPPORTED = "ModeNotSupported"
    NOT_REPRESENTABLE = "NotRepresentable"
    INVALID_SCHEDULE = "InvalidSchedule"
    ASSET_OUT_OF_SERVICE = "AssetOutOfService"
    ASSET_QUARANTINED = "AssetQuarantined"
    ASSET_DELETED = "AssetDeleted"
    CANNOT_VERIFY = "CannotVerify"
    CLOCK_SKEW_TOO_LARGE = "ClockSkewTooLarge"
    START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"
    AGENT_OFFLINE = "AgentOffline"
    CANCELLED_BEFORE_DELIVERY = "CancelledBeforeDelivery"
    CANCELLED_BEFORE_START = "CancelledBeforeStart"
    CANCELLED_WHILE_ACTIVE = "CancelledWhileActive"
    SUPERSEDED_BY = "SupersededBy"
    INSUFFICIENT_ENERGY = "InsufficientEnergy"
    RATE_LIMITED = "RateLimited"
    STALE_TELEMETRY = "StaleTelemetry"
    LOCAL_CONTROL_ACTIVE = "LocalControlActive"
    LOCAL_OVERRIDE = "LocalOverride"
    READ_BACK_MISMATCH = "ReadBackMismatch"
    SETPOINT_NOT_HELD = "SetpointNotHeld"
    DEVICE_WRITE_FAILED = "DeviceWriteFailed"
    DEVICE_OFFLINE = "DeviceOffline"
    EFFECT_NOT_OBSERVED = "EffectNotObserved"
    COMMS_LOSS_FAILSAFE = "CommsLossFailsafe"
    AGENT_RESTARTED = "AgentRestarted"
    REVERTED_LATE = "RevertedLate"
    REVERT_FAILED = "RevertFailed"
    LEDGER_LOST = "LedgerLost"
    OUTCOME_UNKNOWN = "OutcomeUnknown"
