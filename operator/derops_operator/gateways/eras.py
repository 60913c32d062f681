"""Which start the operator's desired state counts from, and when it takes another one. Pure.

Gateways and agents order desired states by era and start, so that a predecessor that still runs
somewhere changes nothing. The operator takes another start only where that lets no predecessor
back in.
"""

import re
from dataclasses import dataclass, replace

from derops.revisions import MAX_AHEAD_SECONDS

_REMEMBERED = 8
_NEAR_MS = 2 * MAX_AHEAD_SECONDS * 1000
"""A gateway stores no start further ahead; its clock may differ from ours by as much."""

_AHEAD = re.compile(
    r"OperatorClockAhead: era (\d{1,20}) start (\d{1,20}) is (\d{1,20}) s ahead of "
)
_BEHIND = re.compile(r"StaleOperator: .{0,100} is behind era (\d{1,20}) start (\d{1,20})\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockAhead:
    """A gateway's word that era or start is too far ahead of its clock."""

    era: int
    start_ms: int
    seconds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """A gateway's word that it holds a later desired state."""

    era: int
    start_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """What this process gives its desired state."""

    era: int
    start_ms: int
    was_accepted: bool = False
    """Whether any gateway has taken a snapshot since the process began."""

    passable: tuple[int, ...] = ()
    """Starts that this process may pass: its own earlier ones, and those of a predecessor whose
    clock was fast. The latter lay in the future when a gateway told of them, so no successor gave
    them."""


def read_refusal(details: str) -> ClockAhead | Behind | None:
    """Return what a gateway said of the start when it ended a stream; None = something else."""
    if found := _AHEAD.match(details):
        return ClockAhead(era=int(found[1]), start_ms=int(found[2]), seconds=int(found[3]))
    if found := _BEHIND.match(details):
        return Behind(era=int(found[1]), start_ms=int(found[2]))
    return None


def after_refusal(own: Start, refusal: ClockAhead | Behind, *, began_ms: int, now_ms: int) -> Start:
    """Return the start to go on with.

    A start that is ahead of a gateway's clock, and of our own as it is now, came of a clock that
    was fast and was set since: the start becomes what it should have been. A start that is behind
    another becomes a later one once our clock has passed that other, if it may be passed.

    Args:
        own: The start as it is.
        refusal: What a gateway said of it.
        began_ms: When the process began, by the clock as it is now.
        now_ms: What the clock says.
    """
    if isinstance(refusal, ClockAhead):
        late = refusal.start_ms != own.start_ms  # told of an earlier one
        return own if late or now_ms >= own.start_ms else _take(own, began_ms)
    if refusal.era != own.era or refusal.start_ms <= own.start_ms:
        return own
    if refusal.start_ms in own.passable:
        return _take(own, now_ms) if now_ms > refusal.start_ms else own
    if not own.was_accepted and now_ms < refusal.start_ms <= now_ms + _NEAR_MS:
        return _allow(own, refusal.start_ms)
    return own


def explain(own: Start, refusal: ClockAhead | Behind, now_ms: int) -> str:
    """Say what is wrong and what to do, where anything."""
    if isinstance(refusal, ClockAhead):
        wrong = (
            "DEROPS_OPERATOR_ERA is in the future"
            if refusal.era * 1000 > refusal.start_ms
            else "set the clock that is wrong"
        )
        return f"{refusal.seconds} s ahead of the gateway's: {wrong}"
    if refusal.era > own.era:
        return f"era {refusal.era} was begun: set DEROPS_OPERATOR_ERA to it"
    ahead = -((now_ms - refusal.start_ms) // 1000)
    if refusal.start_ms in own.passable:
        return f"the gateway holds a start {ahead} s ahead of this clock; goes on when that is over"
    if ahead > 0:
        return f"the gateway holds a start {ahead} s ahead of this clock; begin a new era"
    return "an operator that began later has taken over; if there is none, restart this one"


def _take(own: Start, start_ms: int) -> Start:
    return replace(_allow(own, own.start_ms), start_ms=start_ms)


def _allow(own: Start, start_ms: int) -> Start:
    return replace(own, passable=(*own.passable, start_ms)[-_REMEMBERED:])
