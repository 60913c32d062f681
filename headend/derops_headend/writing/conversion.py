"""Entries of the log to rows. What cannot become rows is quarantined with a reason."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from uuid import UUID, uuid5

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import DecodeError

from derops.log_fields import read_request_id
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2, log_pb2
from derops_headend.writing.refusals import (
    MAX_CREATOR,
    MAX_NAME,
    MAX_TIME_US,
    EntryRefusedError,
    clean,
)
from derops_headend.writing.rows import (
    AssetKey,
    Batch,
    ConnectionRow,
    EventRow,
    GapRow,
    LogSource,
    Quarantined,
    ReportFacts,
)
from derops_headend.writing.samples import Checked, check, to_rows

_EVENTS = UUID("6ce77cb8-2f27-5a2b-9a4b-6c0f8ad7c5b1")


def convert(sources: Sequence[LogSource]) -> Batch:
    """Return the rows of all entries, and those that have none as quarantined."""
    batch = Batch(sources=list(sources))
    telemetry: list[Checked] = []
    for index, source in enumerate(batch.sources):
        kind = source.entry.kind
        try:
            add = _KINDS.get(kind)
            if add is None and kind != log_pb2.TELEMETRY:
                raise EntryRefusedError("UnknownKind", f"kind {kind}")
            _check_time(source.entry.received_us, "received_us")
            if source.entry.refused:
                raise EntryRefusedError("RefusedByGateway", clean(source.entry.refused))
            asset = _asset(batch, source.entry.asset)
            if add is None:
                telemetry.append(check(index, asset, source.entry))
            else:
                add(batch, index, asset)
        except EntryRefusedError as refused:
            batch.quarantined.append(_refused(index, refused))
        except DecodeError as error:
            batch.quarantined.append(
                Quarantined(source=index, reason="Unreadable", detail=clean(str(error)))
            )
    _add_samples(batch, telemetry)
    return batch


def _refused(source: int, error: EntryRefusedError) -> Quarantined:
    return Quarantined(source=source, reason=error.reason, detail=error.detail)


def event_id(dispatch_uid: str, actor: str, transition: str) -> UUID:
    """Return the identity of a step: the same for each report of it."""
    return uuid5(_EVENTS, f"{dispatch_uid}\n{actor}\n{transition}")


def _add_samples(batch: Batch, telemetry: Sequence[Checked]) -> None:
    rows = to_rows(telemetry)
    batch.samples, batch.measurements = rows.samples, rows.measurements
    for source, refused in rows.refused.items():
        batch.quarantined.append(_refused(source, refused))
    for source, counts in rows.infinite.items():
        detail = ", ".join(f"{count} of {name}" for name, count in counts.items())
        batch.quarantined.append(
            Quarantined(source=source, reason="NotFinite", detail=f"infinite values: {detail}")
        )


def _add_gap(batch: Batch, index: int, asset: int) -> None:
    entry = batch.sources[index].entry
    gap = agent_pb2.Gap.FromString(entry.body)
    _check_time(gap.to_us, "to_us")
    if not 0 <= gap.from_us <= gap.to_us:
        raise EntryRefusedError("BadTime", f"from {gap.from_us} to {gap.to_us} us")
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
            index,
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
    # An operator that died before it wrote the status reports the step again with a later time.
    event = _event(
        index,
        asset,
        _dispatch_uid(said.dispatch_uid),
        clean(said.dispatch_name) or None,
        "Headend",
        step,
        entry.received_us,
        identity=f"{step.phase}/{step.reason}",
        report=None,
    )
    batch.events.append(
        replace(
            event,
            created_by=clean(said.created_by)[:MAX_CREATOR] or None,
            request_id=read_request_id(said.request_id) or None,
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
    log_pb2.GAP: _add_gap,
    log_pb2.AGENT_REPORT: _add_report,
    log_pb2.HEADEND_TRANSITION: _add_headend_transition,
    log_pb2.CONNECTION: _add_connection,
}


def _event(
    source: int,
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
        raise EntryRefusedError("NoPhase", "a transition without a phase")
    return EventRow(
        source=source,
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
    key = AssetKey(asset.namespace, asset.name, asset.uid)
    if (known := batch.assets.get(key)) is not None:
        return known
    key = AssetKey(*map(clean, key))
    if not key.namespace or not key.name or max(map(len, key)) > MAX_NAME:
        raise EntryRefusedError(
            "NoAsset", f"asset {key.namespace[:MAX_NAME]}/{key.name[:MAX_NAME]}"
        )
    return batch.assets.setdefault(key, len(batch.assets))


def _dispatch_uid(uid: str) -> str:
    if not 0 < len(uid) <= MAX_NAME:
        raise EntryRefusedError("NoDispatch", f"a dispatch uid of {len(uid)} characters")
    return clean(uid)


def _check_time(instant_us: int, what: str) -> None:
    if not 0 < instant_us < MAX_TIME_US:
        raise EntryRefusedError("BadTime", f"{what} is {instant_us}")


def _to_json(report: dispatch_pb2.DispatchReport) -> str:
    text: str = MessageToJson(report, preserving_proto_field_name=True, indent=None)
    return text.replace("\\u0000", "\\ufffd")
