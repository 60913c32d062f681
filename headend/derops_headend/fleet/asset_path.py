"""The first broken link of one asset's data path, as far as its gateway can tell. Pure.

Device, sampling, outbox, event log: what an agent says, and what becomes of its batches here. Ages
of samples are by the agent's own clock, on both ends, so that they do not depend on how far it is
off. What holds up all agents alike is no asset's fault.
"""

from dataclasses import dataclass

from derops.data_path import LEAST_STALE_SECONDS, LINK_OF, AssetFault
from derops.devices import plain
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2
from derops_headend.fleet.telemetry import MAX_TIME_US

MAX_EVIDENCE_BYTES = 500
"""The most that the evidence of a broken link takes, in words."""

MOST_SETTLING_SECONDS = 600
"""How long an agent may take to catch up at most: its stream lasts for about an hour."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """That each batch which came was refused."""

    lasts_us: int
    """For how long that has been so."""

    why: str
    """The rule that the first of them broke."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What is known of one asset's telemetry as a heartbeat of its agent arrives."""

    device: agent_pb2.DeviceFacts
    """As ``derops.devices`` bounds them; so are the next."""

    telemetry: agent_pb2.TelemetryFacts
    sent_us: int
    """When the heartbeat was sent, by the agent's clock, as ``plausible`` returns it."""

    clock_behind_us: int
    """By how much the agent's clock is behind the gateway's; below 0 it is ahead."""

    refusal: Refusal | None
    """None = the last batch was good, or none came."""

    limit_seconds: int
    """How old the newest sample may be."""

    may_accuse: bool
    """Whether there was time to catch up since the stream began, or what was last told."""

    free_us: int
    """For how long the gateway has taken all telemetry that came; 0 = it does not."""

    is_first: bool
    """Whether nothing was judged on this stream before."""

    @property
    def limit_us(self) -> int:
        """How old the newest sample may be."""
        return self.limit_seconds * SECOND_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is wrong with one asset's data path."""

    reason: AssetFault | None = None
    """None = each link holds."""

    message: str = ""
    """The evidence: value, age, limit."""


HOLDS = Verdict()


def settling_us(limit_seconds: int) -> int:
    """Return for how long an agent that connects may catch up, and what was told stands."""
    return min(limit_seconds, MOST_SETTLING_SECONDS) * SECOND_US


def plausible(sent_us: int) -> int:
    """Return what an agent says of its clock, as an instant from 1970 to 2100."""
    return max(0, min(sent_us, MAX_TIME_US))


def is_clock_wrong(clock_behind_us: int) -> bool:
    """Tell whether an agent's clock is further off than what counts as fresh."""
    return abs(clock_behind_us) >= LEAST_STALE_SECONDS * SECOND_US


def judge(evidence: Evidence) -> Verdict | None:
    """Return what is wrong with the first broken link; None = it is too early to say that it is.

    A device that was silent for long as its agent connects is said to be so at once. A backlog is
    nothing to be accused of while the gateway does not take it, nor until it has for some time.
    """
    found = (
        _judge_device(evidence)
        or _judge_sampling(evidence)
        or _judge_clock(evidence)
        or _judge_disk(evidence)
        or _judge_backlog(evidence)
        or _judge_batches(evidence)
    )
    if found is None:
        return HOLDS
    return found if _may_accuse(found, evidence) else None


def write_state(verdict: Verdict, since_us: int) -> control_pb2.LinkState:
    """Return what the operator is told of a verdict."""
    if verdict.reason is None:
        return control_pb2.LinkState(since_us=since_us)
    return control_pb2.LinkState(
        link=LINK_OF[verdict.reason],
        reason=verdict.reason,
        message=verdict.message,
        since_us=since_us,
    )


def _may_accuse(found: Verdict, evidence: Evidence) -> bool:
    """Tell whether what looks broken has been so for long enough to say so."""
    if found.reason is AssetFault.OUTBOX_BEHIND:
        return evidence.may_accuse and evidence.free_us >= settling_us(evidence.limit_seconds)
    if found.reason is AssetFault.DEVICE_SILENT and evidence.is_first:
        return evidence.may_accuse or _silent_us(evidence) > evidence.limit_us
    return evidence.may_accuse


def _judge_device(evidence: Evidence) -> Verdict | None:
    """Judge a device that is silent now, by how long its samples are missing."""
    if not evidence.device.silent_since_us:
        return None
    age_us = _sample_age_us(evidence)
    missing_us = max(_silent_us(evidence), age_us or 0)
    if age_us is not None and missing_us <= evidence.limit_us:
        return None
    silence = f": {evidence.device.silence}" if evidence.device.silence else ""
    missing = f"no sample of the device for {_seconds(missing_us)}, {_allowed(evidence)}"
    if age_us is None:
        missing = (
            "no sample of the device since its agent started, and no answer for "
            f"{_seconds(missing_us)}"
        )
    return _broken(AssetFault.DEVICE_SILENT, f"{missing}{silence}")


def _judge_sampling(evidence: Evidence) -> Verdict | None:
    age_us = _sample_age_us(evidence)
    if age_us is None:
        return _broken(
            AssetFault.NO_SAMPLES,
            "the outbox has taken no sample since the agent started, the newest may be "
            f"{evidence.limit_seconds} s old",
        )
    if age_us <= evidence.limit_us:
        return None
    return _broken(
        AssetFault.NO_SAMPLES,
        f"the newest sample in the outbox is {_seconds(age_us)} old, {_allowed(evidence)}",
    )


def _judge_clock(evidence: Evidence) -> Verdict | None:
    behind_us = evidence.clock_behind_us
    if not is_clock_wrong(behind_us):
        return None
    return _broken(
        AssetFault.CLOCK_WRONG,
        f"the agent's clock is {_seconds(abs(behind_us))} "
        f"{'behind' if behind_us > 0 else 'ahead of'} the gateway's, less than "
        f"{LEAST_STALE_SECONDS} s are allowed",
    )


def _judge_disk(evidence: Evidence) -> Verdict | None:
    telemetry = evidence.telemetry
    failing_us = evidence.sent_us - telemetry.problem_since_us
    if not telemetry.problem or failing_us <= evidence.limit_us:
        return None
    return _broken(
        AssetFault.OUTBOX_FAILING,
        f"the agent's disk has taken no sample for {_seconds(failing_us)}, {_allowed(evidence)}: "
        f"{telemetry.problem}",
    )


def _judge_backlog(evidence: Evidence) -> Verdict | None:
    telemetry = evidence.telemetry
    age_us = evidence.sent_us - telemetry.oldest_waiting_us
    waits = telemetry.waiting_samples and telemetry.oldest_waiting_us
    if not waits or age_us <= evidence.limit_us or not evidence.free_us:
        return None
    return _broken(
        AssetFault.OUTBOX_BEHIND,
        f"{telemetry.waiting_samples} samples wait at the agent, the oldest for "
        f"{_seconds(age_us)}, {_allowed(evidence)}",
    )


def _judge_batches(evidence: Evidence) -> Verdict | None:
    refusal = evidence.refusal
    if refusal is None or refusal.lasts_us <= evidence.limit_us:
        return None
    return _broken(
        AssetFault.TELEMETRY_REFUSED,
        f"each batch for {_seconds(refusal.lasts_us)} was refused, {_allowed(evidence)}: "
        f"{refusal.why}",
    )


def _silent_us(evidence: Evidence) -> int:
    """Return for how long the device has been silent; 0 = it is not, or that is not told."""
    since_us = evidence.device.silent_since_us
    return max(0, evidence.sent_us - since_us) if since_us else 0


def _sample_age_us(evidence: Evidence) -> int | None:
    """Return how old the newest sample is; None = there was none since the agent started."""
    sampled_us = evidence.telemetry.sampled_us
    return max(0, evidence.sent_us - sampled_us) if sampled_us else None


def _broken(reason: AssetFault, message: str) -> Verdict:
    return Verdict(reason=reason, message=plain(message, MAX_EVIDENCE_BYTES))


def _seconds(span_us: int) -> str:
    return f"{span_us // SECOND_US} s"


def _allowed(evidence: Evidence) -> str:
    return f"{evidence.limit_seconds} s are allowed"
