"""How a dispatch moves from phase to phase: who may say so, and why.

A report of a transition may come late, twice, out of order, or without those before it. So ``fold``
keeps the phase that is furthest along. The table says what may be reported at all. Tests hold
operator and agent to it, and docs/concepts/phases.md to this module.
"""

from dataclasses import dataclass
from enum import StrEnum

from derops.lifecycle import Phase, Reason


class Actor(StrEnum):
    """Who reports that a dispatch is in another phase."""

    OPERATOR = "Operator"
    GATEWAY = "Gateway"
    AGENT = "Agent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Transition:
    """One way from phase to phase; docs/concepts/phases.md has the same numbers."""

    number: str
    starts: frozenset[Phase]
    """Empty: the dispatch is new."""

    end: Phase
    actor: Actor
    reasons: frozenset[Reason]
    rule: str
    """When it happens, in words."""


def fold(held: Phase, told: Phase) -> Phase:
    """Return the phase of a dispatch that was in ``held`` after a report of ``told``.

    A report that is late, repeated or behind changes nothing. A terminal phase never changes.
    """
    return told if not held.terminal and told.rank > held.rank else held


def may_say(actor: Actor, phase: Phase, reason: str) -> bool:
    """Tell whether any transition lets ``actor`` say this."""
    return any(
        each.actor is actor and each.end is phase and reason in each.reasons for each in TRANSITIONS
    )


_STOPPED = frozenset({Reason.ASSET_DELETED, Reason.ASSET_OUT_OF_SERVICE, Reason.ASSET_QUARANTINED})
_UNACCEPTED = frozenset({Phase.SUBMITTED, Phase.SENT})
_ACCEPTED = frozenset({Phase.ACKED, Phase.ACTIVE})
_UNFINISHED = _UNACCEPTED | _ACCEPTED


def _of(
    number: str,
    starts: frozenset[Phase] | Phase | None,
    end: Phase,
    actor: Actor,
    reasons: frozenset[Reason] | Reason,
    rule: str,
) -> Transition:
    return Transition(
        number=number,
        starts=frozenset({starts}) if isinstance(starts, Phase) else starts or frozenset(),
        end=end,
        actor=actor,
        reasons=frozenset({reasons}) if isinstance(reasons, Reason) else reasons,
        rule=rule,
    )


TRANSITIONS = (
    _of(
        "T1", None, Phase.SUBMITTED, Actor.OPERATOR,
        frozenset({Reason.VALIDATED, Reason.ASSET_NOT_FOUND}),
        "it passed the operator's checks, or waits for its asset to exist",
    ),
    _of(
        "T2", Phase.SUBMITTED, Phase.REJECTED, Actor.OPERATOR,
        _STOPPED | {
            Reason.ASSET_NOT_FOUND, Reason.LIMIT_EXCEEDED, Reason.MODE_NOT_SUPPORTED,
            Reason.INVALID_SCHEDULE, Reason.INSUFFICIENT_ENERGY,
        },
        "a rule refused it before it was sent",
    ),
    _of(
        "T3, T4, T6", Phase.SUBMITTED, Phase.SENT, Actor.GATEWAY, Reason.DELIVERED,
        "written to the open stream of the agent; again after each reconnect until it answers",
    ),
    _of(
        "T5", _UNACCEPTED, Phase.EXPIRED, Actor.OPERATOR,
        frozenset({Reason.AGENT_OFFLINE, Reason.START_DEADLINE_EXCEEDED}),
        "accept-by passed, and it is proven that no gateway sent it",
    ),
    _of(
        "T5", _UNACCEPTED, Phase.EXPIRED, Actor.AGENT, Reason.START_DEADLINE_EXCEEDED,
        "it reached the agent after accept-by, or after its window",
    ),
    _of(
        "T7", _UNACCEPTED, Phase.ACKED, Actor.AGENT, Reason.ACCEPTED,
        "checked and on the agent's disk",
    ),
    _of(
        "T8", _UNACCEPTED, Phase.REJECTED, Actor.AGENT,
        frozenset({
            Reason.ASSET_OUT_OF_SERVICE, Reason.ASSET_QUARANTINED,
            Reason.ASSET_NOT_FOUND, Reason.LIMIT_EXCEEDED, Reason.LOCAL_LIMIT_EXCEEDED,
            Reason.MODE_NOT_SUPPORTED, Reason.INVALID_SCHEDULE, Reason.CANNOT_VERIFY,
            Reason.CLOCK_SKEW_TOO_LARGE, Reason.INSUFFICIENT_ENERGY, Reason.RATE_LIMITED,
            Reason.STALE_TELEMETRY, Reason.LOCAL_CONTROL_ACTIVE, Reason.NOT_REPRESENTABLE,
        }),
        "a rule of the agent refused it; the device was not touched",
    ),
    _of(
        "T9", Phase.ACKED, Phase.ACTIVE, Actor.AGENT, Reason.APPLIED,
        "its start has come, and the device took the setpoint",
    ),
    _of(
        "T10", Phase.ACKED, Phase.FAILED, Actor.AGENT,
        frozenset({
            Reason.DEVICE_WRITE_FAILED, Reason.DEVICE_OFFLINE, Reason.READ_BACK_MISMATCH,
            Reason.RATE_LIMITED, Reason.STALE_TELEMETRY, Reason.LOCAL_CONTROL_ACTIVE,
            Reason.INSUFFICIENT_ENERGY, Reason.LIMIT_EXCEEDED, Reason.COMMS_LOSS_FAILSAFE,
            Reason.AGENT_RESTARTED, Reason.REVERT_FAILED, Reason.START_DEADLINE_EXCEEDED,
            Reason.NOT_REPRESENTABLE,
        }),
        "it could not be put on the device by its start deadline, or may be there and stay",
    ),
    _of(
        "T11", Phase.ACTIVE, Phase.COMPLETE, Actor.AGENT, Reason.WINDOW_ENDED,
        "the window ended, and the device is back at its fallback",
    ),
    _of(
        "T12", Phase.ACTIVE, Phase.FAILED, Actor.AGENT,
        frozenset({
            Reason.LOCAL_OVERRIDE, Reason.SETPOINT_NOT_HELD, Reason.EFFECT_NOT_OBSERVED,
            Reason.INSUFFICIENT_ENERGY, Reason.LIMIT_EXCEEDED, Reason.REVERTED_LATE,
            Reason.DEVICE_OFFLINE, Reason.REVERT_FAILED, Reason.STALE_TELEMETRY,
            Reason.NOT_REPRESENTABLE,
        }),
        "it did not go as promised; the device is reverted, or that is tried on",
    ),
    _of(
        "T13", _UNFINISHED, Phase.FAILED, Actor.OPERATOR, Reason.OUTCOME_UNKNOWN,
        "the report deadline passed without a final report",
    ),
    _of(
        "T14", Phase.SUBMITTED, Phase.CANCELLED, Actor.OPERATOR,
        _STOPPED | {Reason.CANCELLED_BEFORE_DELIVERY},
        "withdrawn, and it is proven that no gateway sent it",
    ),
    _of(
        "T15", _UNACCEPTED | {Phase.ACKED}, Phase.CANCELLED, Actor.AGENT,
        _STOPPED | {Reason.CANCELLED_BEFORE_START, Reason.AGENT_OFFLINE},
        "withdrawn before its start",
    ),
    _of(
        "T16", Phase.ACTIVE, Phase.CANCELLED, Actor.AGENT,
        _STOPPED | {Reason.CANCELLED_WHILE_ACTIVE, Reason.AGENT_OFFLINE},
        "withdrawn while it ran; the device is reverted",
    ),
    _of(
        "T17", _ACCEPTED, Phase.SUPERSEDED, Actor.AGENT, Reason.SUPERSEDED_BY,
        "a stronger one of the same mode is on the device",
    ),
    _of(
        "T19", Phase.ACTIVE, Phase.FAILED, Actor.AGENT, Reason.COMMS_LOSS_FAILSAFE,
        "no gateway was heard for failsafeAfterSeconds; the device is reverted",
    ),
    _of(
        "T21", _ACCEPTED, Phase.FAILED, Actor.AGENT, Reason.AGENT_RESTARTED,
        "the agent restarted in it, and the asset says Revert, or it was over first",
    ),
    _of(
        "T21", _UNFINISHED, Phase.FAILED, Actor.AGENT, Reason.LEDGER_LOST,
        "it had been accepted, or given to the agent, and the agent's disk does not know it",
    ),
    _of(
        "T21", _UNFINISHED, Phase.FAILED, Actor.OPERATOR, Reason.LEDGER_LOST,
        "the same, where only another gateway knows that it had been given to the agent",
    ),
)  # fmt: skip
"""All but T18 (the agent goes on alone: no transition) and T20 (opting out has no channel)."""
