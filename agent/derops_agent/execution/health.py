"""What is wrong with a device: folded from its samples, and from those it did not give. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from derops.devices import MAX_BAD_POINTS, bounded
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Moment
from derops_agent.execution.needs import PointNeed
from derops_agent.ports import BadPoint, Reading

SILENT_AFTER_US = 10 * SECOND_US
"""A device is silent so long after the first of two samples in a row that did not come."""

WHOLE_SAMPLE = "sample"
"""Name of the bad point that stands for all points: the device refused the whole sample."""

_MISSED_SAMPLES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Badness:
    """A point that was bad in the last sample, or a sample that was refused as a whole."""

    point: BadPoint
    """As in the first sample of those in a row: a raw value that changes is no news."""

    since: Moment
    last_good_us: int | None
    """When the last good sample came, by the monotonic clock; None = it was bad from the first."""

    samples: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """All that is known of a device since the agent started."""

    values: Mapping[int, float] = field(default_factory=dict)
    """The last good value of each quantity that is measured, or bad now."""

    bad: Mapping[str, Badness] = field(default_factory=dict)
    """By name of the point, the longest first."""

    measured_us: int | None = None
    """When the last sample came, by the monotonic clock."""

    answered: Moment | None = None
    """When the device last answered a measurement, even by a refusal."""

    asked: Moment | None = None
    """When the first of the measurements in a row without an answer was asked for."""

    missed: int = 0
    """How many in a row had no answer."""

    problem: str = ""
    """Why the first of these had none; later ones only say that the device was not asked."""

    def badness_of(self, need: PointNeed) -> Badness | None:
        """Return what is bad about a point that is needed; None = it is good."""
        if WHOLE_SAMPLE in self.bad and need.quantity in self.values:
            return self.bad[WHOLE_SAMPLE]
        return next(
            (
                each
                for each in self.bad.values()
                if (each.point.quantity or each.point.name) == (need.quantity or need.point)
            ),
            None,
        )


def note_sample(health: Health, reading: Reading, now: Moment) -> Health:
    """Fold a sample into what is known."""
    points = {point.name: point for point in reading.bad_points}
    lasting = {
        name: replace(known, samples=known.samples + 1)
        for name, known in health.bad.items()
        if name in points
    }
    begun = {
        name: Badness(point=point, since=now, last_good_us=health.measured_us)
        for name, point in points.items()
        if name not in lasting
    }
    kept = {point.quantity for point in reading.bad_points} & health.values.keys()
    return Health(
        values={quantity: health.values[quantity] for quantity in kept} | dict(reading.values),
        bad=lasting | begun,
        measured_us=now.monotonic_us,
        answered=now,
    )


def note_refusal(health: Health, problem: str, now: Moment) -> Health:
    """Fold a sample that the device refused as a whole into what is known; it is not silent."""
    known = health.bad.get(WHOLE_SAMPLE)
    refused = Badness(
        point=BadPoint(name=WHOLE_SAMPLE, raw="", problem=problem),
        since=known.since if known is not None else now,
        last_good_us=health.measured_us,
        samples=known.samples + 1 if known is not None else 1,
    )
    return Health(
        values=health.values,
        bad={**health.bad, WHOLE_SAMPLE: refused},
        measured_us=health.measured_us,
        answered=now,
    )


def note_missed(health: Health, problem: str, now: Moment) -> Health:
    """Fold a sample that did not come into what is known."""
    return replace(
        health,
        asked=health.asked or now,
        missed=health.missed + 1,
        problem=health.problem or problem,
    )


def write_facts(
    health: Health, fallback_problem: str, now: Moment, *, unheld: str = ""
) -> agent_pb2.DeviceFacts | None:
    """Return what is wrong with a device, as a heartbeat says it; None = nothing is known yet.

    Args:
        health: What is known of the device.
        fallback_problem: Why the device cannot hold its fallback; empty = it can.
        now: Both clocks.
        unheld: What the device says instead of the fallback that it was told; empty = it holds it.
    """
    silent_since = _silent_since(health, now)
    if health.answered is None and silent_since is None:
        return None
    named = list(health.bad.values())[:MAX_BAD_POINTS]
    return bounded(
        agent_pb2.DeviceFacts(
            bad_points=[
                agent_pb2.BadPoint(
                    name=each.point.name,
                    raw=each.point.raw,
                    problem=each.point.problem,
                    since_us=each.since.wall_us,
                    samples=each.samples,
                )
                for each in named
            ],
            more_bad_points=len(health.bad) - len(named),
            silent_since_us=silent_since.wall_us if silent_since else 0,
            silence=health.problem if silent_since else "",
            fallback_problem=fallback_problem or unheld,
            fallback_not_taken=bool(unheld) and not fallback_problem,
        )
    )


def _silent_since(health: Health, now: Moment) -> Moment | None:
    """Return since when a device is silent; None = it is not."""
    asked = health.asked
    if health.missed < _MISSED_SAMPLES or asked is None:
        return None
    return asked if now.monotonic_us - asked.monotonic_us >= SILENT_AFTER_US else None
