"""Entries of the log to rows. What cannot become rows is quarantined with a reason."""

from collections.abc import Callable, Sequence
from uuid import UUID, uuid5

import numpy as np
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import DecodeError

from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2, log_pb2
from derops_headend.writing.rows import (
    QUANTITIES,
    SAMPLE,
    AssetKey,
    Batch,
    ConnectionRow,
    EventRow,
    GapRow,
    Measurements,
    Quarantined,
    ReportFacts,
    Source,
)

MAX_TIME_US = 4_102_444_800_000_000
"""The year 2100: later times are a broken clock."""

MAX_AHEAD_US = 2 * 86_400_000_000
"""A clock that is further ahead of ours is not one: its samples would need days of their own."""

MAX_LATE_US = 400 * 86_400_000_000
"""Older than any outbox keeps."""

MAX_NAME = 256

MAX_UNNOTED_US = 5_000_000
"""How far ahead of ours a clock may be before its samples are flagged."""

_EVENTS = UUID("6ce77cb8-2f27-5a2b-9a4b-6c0f8ad7c5b1")


class RefusedError(Exception):
    """An entry that cannot become rows."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def convert(sources: Sequence[Source]) -> Batch:
    """Return the rows of all entries, and those that have none as quarantined."""
    batch = Batch(sources=list(sources))
    for index, source in enumerate(batch.sources):
        kind = source.entry.kind
        try:
            add = _KINDS.get(kind)
            if add is None:
                raise RefusedError("UnknownKind", f"kind {kind}")
            _check_time(source.entry.received_us, "received_us")
            if source.entry.refused:
                raise RefusedError("RefusedByGateway", clean(source.entry.refused))
            asset = _asset(batch, source.entry.asset)
            add(batch, index, asset)
        except RefusedError as refused:
            batch.quarantined.append(
                Quarantined(source=index, reason=refused.reason, detail=refused.detail)
            )
        except DecodeError as error:
            batch.quarantined.append(
                Quarantined(source=index, reason="Unreadable", detail=clean(str(error)))
            )
    return batch


def clean(text: str) -> str:
    """Return text as PostgreSQL can store it."""
    return text.replace("\0", "\ufffd")


def event_id(dispatch_uid: str, actor: str, transition: str) -> UUID:
    """Return the identity of a step: whoever tells it again names the same."""
    return uuid5(_EVENTS, f"{dispatch_uid}\n{actor}\n{transition}")


def _add_telemetry(batch: Batch, index: int, asset: int) -> None:
    entry = batch.sources[index].entry
    message = agent_pb2.TelemetryBatch.FromString(entry.body)
    ts_us = _times(message, entry.received_us)
    rows = np.empty(len(ts_us), SAMPLE)
    rows["clock_offset_seconds"] = _clock_offset_seconds(entry, int(ts_us.max()))
    rows["source"], rows["asset"], rows["ts_us"] = index, asset, ts_us
    rows["received_us"] = entry.received_us
    present = np.zeros(len(ts_us), bool)
    seen = set()
    odd: list[Measurements] = []
    refused: dict[str, int] = {}
    for column in message.columns:
        name = _column_name(column)
        if name in seen:
            raise RefusedError("DuplicateColumn", f"{name} is there twice")
        seen.add(name)
        if len(column.values) != len(ts_us):
            detail = f"{len(column.values)} values of {name} for {len(ts_us)} samples"
            raise RefusedError("UnequalColumns", detail)
        values = np.array(column.values, "f8")
        known = np.isfinite(values)
        if not known.all():
            refused |= _refuse_infinite(name, values)
        if column.quantity in QUANTITIES:
            rows[name] = values
            present |= known
        elif known.any():
            odd.append(
                Measurements(
                    source=index,
                    asset=asset,
                    name=name,
                    ts_us=ts_us[known],
                    values=values[known],
                )
            )
    for name in QUANTITIES.values():
        if name not in seen:
            rows[name] = np.nan
    if refused:
        detail = ", ".join(f"{count} of {name}" for name, count in refused.items())
        batch.quarantined.append(
            Quarantined(source=index, reason="NotFinite", detail=f"infinite values: {detail}")
        )
    batch.samples.append(rows if present.all() else rows[present])
    batch.measurements += odd


def _refuse_infinite(
    name: str, values: "np.ndarray[tuple[int], np.dtype[np.float64]]"
) -> dict[str, int]:
    """Make infinite values absent; return how many there were under the name, if any."""
    infinite = np.isinf(values)
    values[infinite] = np.nan
    return {name: int(infinite.sum())} if infinite.any() else {}


def _clock_offset_seconds(entry: log_pb2.LogEntry, last_us: int) -> float:
    """Return what the gateway said; else what is certain: no sample is from the future."""
    if entry.HasField("clock_offset_milliseconds"):
        return entry.clock_offset_milliseconds / 1000
    ahead_us = last_us - entry.received_us
    return -ahead_us / 1e6 if ahead_us > MAX_UNNOTED_US else np.nan


def _times(
    message: agent_pb2.TelemetryBatch, received_us: int
) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    if not message.dt_us:
        raise RefusedError("NoSamples", "the batch has no times")
    offsets = np.array(message.dt_us, "i8")
    # Both bounds before the sum, so that it cannot overflow into a good time.
    if not (abs(message.t0_us) < MAX_TIME_US and np.abs(offsets).max() < MAX_TIME_US):
        raise RefusedError("BadTime", f"t0 {message.t0_us} us, offsets up to {offsets.max()} us")
    ts_us = offsets + message.t0_us
    first_us, last_us = int(ts_us.min()), int(ts_us.max())
    if not (received_us - first_us <= MAX_LATE_US and last_us - received_us <= MAX_AHEAD_US):
        raise RefusedError(
            "BadTime", f"samples from {first_us} to {last_us} us, received at {received_us} us"
        )
    return ts_us


def _column_name(column: agent_pb2.Column) -> str:
    if column.quantity in QUANTITIES:
        return QUANTITIES[column.quantity]
    # A quantity of a newer agent keeps its number until this program knows its name.
    name = clean(column.name) or (f"quantity_{column.quantity}" if column.quantity else "")
    if not 0 < len(name) <= MAX_NAME:
        raise RefusedError("BadColumn", f"a name of {len(name)} characters")
    return name


def _add_gap(batch: Batch, index: int, asset: int) -> None:
    entry = batch.sources[index].entry
    gap = agent_pb2.Gap.FromString(entry.body)
    _check_time(gap.to_us, "to_us")
    if not 0 <= gap.from_us <= gap.to_us:
        raise RefusedError("BadTime", f"from {gap.from_us} to {gap.to_us} us")
    batch.gaps.append(
        GapRow(
            asset=asset,
            outbox_id=clean(gap.outbox_id),
            sequence=gap.sequence,
            from_us=gap.from_us,
            to_us=gap.to_us,
            samples=gap.samples,
            reason=clean(gap.reason),
            received_us=entry.received_us,
        )
    )


def _add_report(batch: Batch, index: int, asset: int) -> None:
    entry = batch.sources[index].entry
    report = dispatch_pb2.DispatchReport.FromString(entry.body)
    uid = _dispatch_uid(report.dispatch_uid)
    steps = list(report.transitions) or [
        dispatch_pb2.Transition(
            phase=report.phase,
            reason=report.reason,
            message=report.message,
            at_us=entry.received_us,
        )
    ]
    facts = ReportFacts(
        json=_to_json(report), ledger_id=clean(report.ledger_id), sequence=report.sequence
    )
    # The agent's times are in its ledger and never change, so they tell repeated phases apart.
    at_known = bool(report.transitions)
    events = [
        _event(
            asset,
            uid,
            None,
            "Agent",
            step,
            entry.received_us,
            identity=f"{step.phase}/{step.reason}/{step.at_us if at_known else 0}",
            report=facts if place == len(steps) else None,
        )
        for place, step in enumerate(steps, start=1)
    ]
    batch.events += events


def _add_headend_transition(batch: Batch, index: int, asset: int) -> None:
    entry = batch.sources[index].entry
    said = control_pb2.HeadendTransition.FromString(entry.body)
    step = said.transition
    # An operator that died before its status write says it again with a later time.
    batch.events.append(
        _event(
            asset,
            _dispatch_uid(said.dispatch_uid),
            clean(said.dispatch_name) or None,
            "Headend",
            step,
            entry.received_us,
            identity=f"{step.phase}/{step.reason}",
            report=None,
        )
    )


def _add_connection(batch: Batch, index: int, asset: int) -> None:
    entry = batch.sources[index].entry
    event = log_pb2.ConnectionEvent.FromString(entry.body)
    batch.connections.append(
        ConnectionRow(
            source=index,
            asset=asset,
            event=clean(event.event),
            reason=clean(event.reason),
            message=clean(event.message),
            epoch=event.epoch,
            peer=clean(event.peer),
            serial_number=clean(event.serial_number),
            replica=clean(event.replica),
            at_us=entry.received_us,
        )
    )


_KINDS: dict[int, Callable[[Batch, int, int], None]] = {
    log_pb2.TELEMETRY: _add_telemetry,
    log_pb2.GAP: _add_gap,
    log_pb2.AGENT_REPORT: _add_report,
    log_pb2.HEADEND_TRANSITION: _add_headend_transition,
    log_pb2.CONNECTION: _add_connection,
}


def _event(
    asset: int,
    uid: str,
    name: str | None,
    actor: str,
    step: dispatch_pb2.Transition,
    received_us: int,
    *,
    identity: str,
    report: ReportFacts | None,
) -> EventRow:
    _check_time(step.at_us, "at_us")
    if not step.phase:
        raise RefusedError("NoPhase", "a transition without a phase")
    return EventRow(
        event_id=event_id(uid, actor, identity),
        asset=asset,
        dispatch_uid=uid,
        dispatch_name=name,
        actor=actor,
        phase=clean(step.phase),
        reason=clean(step.reason),
        message=clean(step.message),
        at_us=step.at_us,
        received_us=received_us,
        report=report,
    )


def _asset(batch: Batch, asset: dispatch_pb2.AssetId) -> int:
    key = AssetKey(clean(asset.namespace), clean(asset.name), clean(asset.uid))
    if not key.namespace or not key.name or max(map(len, key)) > MAX_NAME:
        raise RefusedError("NoAsset", f"asset {key.namespace[:MAX_NAME]}/{key.name[:MAX_NAME]}")
    return batch.assets.setdefault(key, len(batch.assets))


def _dispatch_uid(uid: str) -> str:
    if not 0 < len(uid) <= MAX_NAME:
        raise RefusedError("NoDispatch", f"a dispatch uid of {len(uid)} characters")
    return clean(uid)


def _check_time(instant_us: int, what: str) -> None:
    if not 0 < instant_us < MAX_TIME_US:
        raise RefusedError("BadTime", f"{what} is {instant_us}")


def _to_json(report: dispatch_pb2.DispatchReport) -> str:
    text: str = MessageToJson(report, preserving_proto_field_name=True, indent=None)
    return text.replace("\\u0000", "\\ufffd")
