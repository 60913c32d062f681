"""Whether the device did what its setpoint says, judged over the whole window. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from derops.modes import Evidence, Mode
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Moment
from derops_agent.execution.state import Effect, Execution, Stage
from derops_agent.ports import Reading, Resolution

GOOD_SHARE = 0.8
"""The share of a window after settling in which the power must be within tolerance."""

_MAX_SAMPLE_US = 5_000_000  # one sample stands for no longer than this
_TAIL_US = 1_500_000  # what may be left of a window after its last sample; they come each second


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """How an effect is judged."""

    tolerance_watts: float = 100.0
    tolerance_percent: float = 5.0
    """Of the setpoint; the larger of both tolerances counts."""

    standby_watts: float = 0.0
    """Tolerated too where the target is 0 W, which has no percentage."""

    settle_us: int
    """How long the device may take to reach a setpoint; that time is not judged."""

    samples: int = 3
    """How many samples in a row decide while the window is open."""

    measures: bool = True
    """Whether the device measures its power at all."""

    resolutions: Mapping[str, Resolution] = field(default_factory=dict)
    """What the device can hold, by mode, see ``Capability``."""

    def tolerance_for(self, mode: str, target_watts: int) -> float:
        """Return by how many watts a power may differ from its target."""
        aimed_watts = 0 if mode == Mode.CEASE_TO_ENERGIZE else abs(target_watts)
        share = self.tolerance_percent / 100 * aimed_watts if aimed_watts else self.standby_watts
        return max(self.tolerance_watts, share)

    def tolerates(self, mode: str, target_watts: int, power_watts: float) -> bool:
        """Tell whether a sample is within tolerance.

        A limit is only missed by what exceeds it. Between the target and what the device can hold
        of it, everything is within tolerance.
        """
        tolerance = self.tolerance_for(mode, target_watts)
        match mode:
            case Mode.GENERATION_LIMIT:
                return power_watts <= target_watts + tolerance
            case Mode.LOAD_LIMIT:
                return -power_watts <= target_watts + tolerance
            case Mode.CEASE_TO_ENERGIZE:
                return abs(power_watts) <= tolerance
        resolution = self.resolutions.get(mode)
        held_watts = target_watts if resolution is None else resolution.nearest(target_watts)
        low_watts, high_watts = sorted((held_watts, target_watts))
        return low_watts - tolerance <= power_watts <= high_watts + tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """True, False or Unknown, and why."""

    verified: str
    reason: str


def observe(execution: Execution, reading: Reading, rule: Rule, now: Moment) -> Execution:
    """Fold one sample into what is known of the effect."""
    power = reading.values.get(agent_pb2.Quantity.ACTIVE_POWER_WATTS)
    held = execution.held_since
    if power is None or held is None:
        return execution
    effect = execution.effect
    age_us = max(0, min(now.wall_us - reading.at_us, _MAX_SAMPLE_US))
    at_us = execution.steady_us(now) - age_us
    since_us = max(effect.last_sample_us, execution.steady_us(held))
    span_us = max(0, min(at_us - since_us, _MAX_SAMPLE_US))
    delivered = (effect.delivered_watt_hours or 0.0) + power * span_us / 3.6e9
    seen = replace(effect, last_sample_us=at_us, delivered_watt_hours=delivered)
    if execution.stage is not Stage.HOLDING:  # past its end: it counts, and is not judged
        return replace(execution, effect=seen)
    good = rule.tolerates(execution.order.mode, execution.target_watts, power)
    is_active_power = execution.order.mode == Mode.ACTIVE_POWER
    if good and is_active_power and not rule.tolerates(Mode.ACTIVE_POWER, 0, power):
        # A power that only the setpoint explains is evidence that the device still holds it.
        execution = replace(execution, confirmed=now)
    # Before the whole value is written nothing is judged: a ramp is not a miss.
    settled_us = execution.arrived_us + rule.settle_us if execution.arrived_us else at_us
    judged_us = max(0, min(span_us, at_us - settled_us))
    return replace(execution, effect=_judge_sample(seen, span_us, judged_us, good=good))


def _judge_sample(effect: Effect, span_us: int, judged_us: int, *, good: bool) -> Effect:
    """Return it with one sample more, which was within tolerance or not.

    Args:
        effect: So far.
        span_us: The time that the sample stands for.
        judged_us: Of that, the part after settling.
        good: It was within tolerance.
    """
    in_a_row = max(effect.in_a_row, 0) + 1 if good else min(effect.in_a_row, 0) - 1
    return replace(
        effect,
        within_us=effect.within_us + (span_us if good else 0),
        judged_us=effect.judged_us + judged_us,
        good_us=effect.good_us + (judged_us if good else 0),
        in_a_row=in_a_row if judged_us else 0,
    )


def verdict(execution: Execution, *, until_us: int, rule: Rule) -> Verification:
    """Judge the window up to ``until_us``, a steady instant; time without samples is unknown."""
    due_us = _due_us(execution, until_us, rule)
    effect = execution.effect
    if due_us <= 0 or not rule.measures:
        return Verification(verified="Unknown", reason="NotVerifiable")
    if effect.good_us >= GOOD_SHARE * due_us:
        return Verification(verified="True", reason="EffectWithinTolerance")
    missed_us = effect.judged_us - effect.good_us
    if missed_us > (1 - GOOD_SHARE) * due_us:
        return Verification(verified="False", reason="EffectNotObserved")
    return Verification(verified="Unknown", reason="TooFewSamples")


def conclude_window(execution: Execution, now: Moment, rule: Rule) -> Execution:
    """Return it with the verdict on its whole window, if it was applied."""
    if not execution.applied_us:
        return execution
    found = verdict(execution, until_us=_ended_us(execution, now), rule=rule)
    return conclude(execution, found, now.wall_us)


def explain(execution: Execution, now: Moment, rule: Rule) -> str:
    """Return the numbers behind the verdict on a window that has ended, in words."""
    effect = execution.effect
    due_us = max(0, _due_us(execution, _ended_us(execution, now), rule))
    return (
        f"of {due_us / 1e6:.0f} s after settling the measured power was within tolerance for "
        f"{effect.good_us / 1e6:.0f} s and beyond it for "
        f"{(effect.judged_us - effect.good_us) / 1e6:.0f} s; {GOOD_SHARE:.0%} must be within"
    )


def _ended_us(execution: Execution, now: Moment) -> int:
    return execution.steady_us(now) - (now.wall_us - execution.ended_us)


def _due_us(execution: Execution, until_us: int, rule: Rule) -> int:
    """Return how much of the window is to be judged, without a tail too short for a sample."""
    if not execution.arrived_us:
        return 0
    effect = execution.effect
    tail_us = max(0, until_us - effect.last_sample_us)
    unsampled_us = tail_us if effect.judged_us and tail_us <= _TAIL_US else 0
    return until_us - unsampled_us - execution.arrived_us - rule.settle_us


def tell_first_verdict(execution: Execution, *, now_us: int, rule: Rule) -> Execution:
    """Return it with a first verdict while its window is open; the next one waits for the end."""
    in_a_row = execution.effect.in_a_row
    if execution.effect.told or abs(in_a_row) < rule.samples:
        return execution
    found = (
        Verification(verified="True", reason="EffectWithinTolerance")
        if in_a_row > 0
        else Verification(verified="False", reason="EffectNotObserved")
    )
    return conclude(
        replace(execution, effect=replace(execution.effect, told=found.verified)), found, now_us
    )


def conclude(execution: Execution, found: Verification, now_us: int) -> Execution:
    """Return it with ``found`` as its verdict."""
    good = found.verified == "True"
    return replace(
        execution,
        verified=found.verified,
        verified_reason=found.reason,
        verified_us=(execution.verified_us or now_us) if good else 0,
        evidence=Evidence.EFFECT if good else execution.evidence,
    )
