"""Whether the device did what its setpoint says, judged over the whole window."""

from dataclasses import dataclass, replace

from derops.wire.v1 import agent_pb2
from derops_agent.control.execution import Execution, Stage
from derops_agent.ports import Reading

TOLERANCE_WATTS = 100.0
TOLERANCE_SHARE = 0.05
GOOD_SHARE = 0.8
_MAX_SAMPLE_US = 5_000_000  # what one sample may stand for; longer is unknown
_MIN_JUDGED_US = 2_000_000  # before that no verdict is told


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """True, False or Unknown, and why."""

    verified: str
    reason: str


def observe(execution: Execution, reading: Reading, settle_us: int) -> Execution:
    """Fold one sample into what is known of the effect."""
    power = reading.values.get(agent_pb2.Quantity.ACTIVE_POWER_WATTS)
    held = execution.held_since
    if power is None or held is None or execution.stage is not Stage.HOLDING:
        return execution
    effect = execution.effect
    since_us = max(effect.last_sample_us, held.wall_us)
    span_us = max(0, min(reading.at_us - since_us, _MAX_SAMPLE_US))
    good = within_tolerance(execution.order.mode, execution.target_watts, power)
    settled_us = execution.applied_us + settle_us
    judged_us = max(0, min(span_us, reading.at_us - settled_us))
    return replace(
        execution,
        effect=replace(
            effect,
            last_sample_us=reading.at_us,
            within_us=effect.within_us + (span_us if good else 0),
            judged_us=effect.judged_us + judged_us,
            good_us=effect.good_us + (judged_us if good else 0),
            delivered_watt_hours=(effect.delivered_watt_hours or 0.0) + power * span_us / 3.6e9,
        ),
    )


def within_tolerance(mode: str, target_watts: int, power_watts: float) -> bool:
    """Judge one sample: a setpoint by its distance, a limit only by being exceeded."""
    tolerance = max(TOLERANCE_WATTS, TOLERANCE_SHARE * abs(target_watts))
    match mode:
        case "GenerationLimit":
            return power_watts <= target_watts + tolerance
        case "LoadLimit":
            return -power_watts <= target_watts + tolerance
        case "CeaseToEnergize":
            return abs(power_watts) <= TOLERANCE_WATTS
    return abs(power_watts - target_watts) <= tolerance


def verdict(execution: Execution, *, until_us: int, settle_us: int) -> Verdict:
    """Judge the window up to ``until_us``. What was not sampled is not known."""
    due_us = until_us - execution.applied_us - settle_us
    effect = execution.effect
    if execution.applied_us == 0 or due_us <= 0:
        return Verdict(verified="Unknown", reason="NotVerifiable")
    if effect.good_us >= GOOD_SHARE * due_us:
        return Verdict(verified="True", reason="EffectWithinTolerance")
    missed_us = effect.judged_us - effect.good_us
    if missed_us > (1 - GOOD_SHARE) * due_us:
        return Verdict(verified="False", reason="EffectNotObserved")
    return Verdict(verified="Unknown", reason="TooFewSamples")


def tell_first_verdict(execution: Execution, *, now_us: int, settle_us: int) -> Execution:
    """Return it with a first verdict while its window is open; later ones wait for the end."""
    if execution.effect.told or execution.effect.judged_us < _MIN_JUDGED_US:
        return execution
    found = verdict(execution, until_us=now_us, settle_us=settle_us)
    if found.verified == "Unknown":
        return execution
    return conclude(
        replace(execution, effect=replace(execution.effect, told=found.verified)), found, now_us
    )


def conclude(execution: Execution, found: Verdict, now_us: int) -> Execution:
    """Return it with ``found`` as its verdict."""
    good = found.verified == "True"
    return replace(
        execution,
        verified=found.verified,
        verified_reason=found.reason,
        verified_us=(execution.verified_us or now_us) if good else 0,
        evidence="Effect" if good else execution.evidence,
    )
