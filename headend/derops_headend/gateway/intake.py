"""The telemetry of one stream: batches and gaps go into the log, and the agent gets credit."""

from collections.abc import Callable
from functools import partial
from typing import Protocol

from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, dispatch_pb2, log_pb2
from derops_headend.fleet.asset_path import Refusal
from derops_headend.fleet.telemetry import (
    BatchVerdict,
    OutboxOrder,
    Violation,
    check_batch,
    check_gap,
)
from derops_headend.gateway import metrics
from derops_headend.gateway.admission_control import AdmissionControl, Creditor
from derops_headend.gateway.agent_clock import AgentClock
from derops_headend.gateway.log_appender import LogAppender
from derops_headend.gateway.outlets import AgentOutlet, logger_of

MAX_REFUSED_BATCHES = 256
"""How many batches may break a rule before the stream is ended."""

MAX_DROPPED_BATCHES = 256
"""How many batches may come beyond the credit before the stream is ended."""


class TelemetryOutlet(AgentOutlet, Creditor, Protocol):
    """A stream that brings telemetry."""


class Intake:
    """The telemetry of one stream, from its arrival to its acknowledgement.

    Each call is given the stream, as none is kept here: both are freed at once when it ends.

    Args:
        asset: The asset of the stream.
        order: Tells what may come next.
        clock: How far the agent's clock is off.
        journal: The way into the event log.
        admission: Decides who may send, and how much.
        now_us: The wall clock.
        monotonic_us: A clock that nobody can set.
    """

    __slots__ = (
        "_admission",
        "_asset",
        "_clock",
        "_dropped",
        "_journal",
        "_monotonic_us",
        "_now_us",
        "_order",
        "_refused",
        "_refused_since",
    )

    def __init__(
        self,
        *,
        asset: dispatch_pb2.AssetId,
        order: OutboxOrder,
        clock: AgentClock,
        journal: LogAppender,
        admission: AdmissionControl,
        now_us: Callable[[], int],
        monotonic_us: Callable[[], int],
    ) -> None:
        self._asset, self._order, self._clock = asset, order, clock
        self._journal, self._admission = journal, admission
        self._now_us, self._monotonic_us = now_us, monotonic_us
        self._dropped = self._refused = 0
        self._refused_since: tuple[int, str] | None = None
        """When the first batch after the last good one was refused, and why."""

    def open(self, stream: TelemetryOutlet) -> None:
        """Ask for the first credit."""
        self._admission.request(stream)

    def close(self, stream: TelemetryOutlet) -> None:
        """Ask for no more credit."""
        self._admission.forget(stream)

    @property
    def is_calm(self) -> bool:
        """Whether all that came is durable, and the agent may send more."""
        return self._order.is_calm

    @property
    def refusal(self) -> Refusal | None:
        """That each batch which came was refused; None = the last one was good, or none came."""
        if self._refused_since is None:
            return None
        since_us, why = self._refused_since
        return Refusal(lasts_us=self._monotonic_us() - since_us, why=why)

    def credit(self, window: int) -> agent_pb2.TelemetryCredit:
        """Return the acknowledgement, with a credit for ``window`` batches on their way."""
        return self._order.credit(window)

    def take_batch(
        self, stream: TelemetryOutlet, batch: agent_pb2.TelemetryBatch
    ) -> Violation | None:
        """Put a batch into the log; return the rule that ends the stream, if it broke one."""
        self._admission.count()
        verdict = self._place(stream, batch.sequence, batch.outbox_id, gap=False)
        if verdict is not BatchVerdict.STORE:
            return verdict if isinstance(verdict, Violation) else None
        broken = check_batch(batch)
        body = batch.SerializeToString()
        if broken is not None:
            self._refused_since = self._refused_since or (self._monotonic_us(), broken.message)
            return self._refuse(stream, log_pb2.TELEMETRY, batch.sequence, body, broken)
        self._refused_since = None
        metrics.BATCHES.inc()
        metrics.SAMPLES.inc(len(batch.dt_us))
        metrics.SAMPLE_AGE_SECONDS.observe(self._age_seconds(batch.t0_us))
        return self._store(stream, log_pb2.TELEMETRY, body, batch.sequence)

    def take_gap(self, stream: TelemetryOutlet, gap: agent_pb2.Gap) -> Violation | None:
        """Put a gap into the log; return the rule that ends the stream, if it broke one."""
        verdict = self._place(stream, gap.sequence, gap.outbox_id, gap=True)
        if verdict is not BatchVerdict.STORE:
            return verdict if isinstance(verdict, Violation) else None
        broken = check_gap(gap)
        body = gap.SerializeToString()
        if broken is not None:
            return self._refuse(stream, log_pb2.GAP, gap.sequence, body, broken)
        metrics.GAPS.inc()
        logger_of(stream).warning("telemetry.lost", samples=gap.samples, reason=gap.reason)
        return self._store(stream, log_pb2.GAP, body, gap.sequence)

    def _age_seconds(self, sampled_us: int) -> float:
        """Return how long ago a sample was taken, by our clock; 0 = it comes from the future."""
        offset_us = (self._clock.offset_milliseconds or 0) * 1000
        return max(0, self._now_us() - sampled_us - offset_us) / SECOND_US

    def _place(
        self, stream: TelemetryOutlet, sequence: int, outbox_id: str, *, gap: bool
    ) -> BatchVerdict | Violation:
        verdict = self._order.take(sequence, outbox_id, gap=gap)
        if verdict is BatchVerdict.BEYOND_CREDIT:
            metrics.DROPPED_BATCHES.inc()
            self._dropped += 1
            if self._dropped > MAX_DROPPED_BATCHES:
                return Violation(
                    reason="CreditIgnored",
                    message=f"more than {MAX_DROPPED_BATCHES} batches came beyond the credit",
                )
        elif verdict is BatchVerdict.DUPLICATE:
            self._admission.request(stream)
        return verdict

    def _refuse(
        self,
        stream: TelemetryOutlet,
        kind: log_pb2.EntryKind,
        sequence: int,
        body: bytes,
        broken: Violation,
    ) -> Violation | None:
        """Keep a batch or gap for quarantine; end the stream if there were too many."""
        metrics.REFUSED_BATCHES.inc()
        logger_of(stream).warning("telemetry.refused", sequence=sequence, why=broken.message)
        self._refused += 1
        if self._refused > MAX_REFUSED_BATCHES:
            return broken
        refused = agent_pb2.TelemetryRefused(
            sequence=sequence, reason=broken.reason, message=broken.message
        )
        stream.send(agent_pb2.GatewayMessage(telemetry_refused=refused))
        return self._store(stream, kind, body, sequence, refused=broken.message)

    def _store(
        self,
        stream: TelemetryOutlet,
        kind: log_pb2.EntryKind,
        body: bytes,
        sequence: int,
        *,
        refused: str = "",
    ) -> Violation | None:
        violation = self._journal.check_room(stream, body)
        if violation is None:
            self._journal.bring(
                stream,
                kind,
                self._asset,
                body,
                partial(self._settle, stream, sequence),
                refused=refused,
                clock_offset_milliseconds=self._clock.offset_milliseconds,
            )
        return violation

    def _settle(self, stream: TelemetryOutlet, sequence: int, error: BaseException | None) -> None:
        if error is None:
            self._order.stored(sequence)
            self._admission.request(stream)
