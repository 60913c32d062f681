"""Entries of the log as a gateway would append them."""

import math
from collections.abc import Mapping, Sequence

from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2, log_pb2
from derops_headend.writing.rows import LogSource

T0_US = 1_760_000_000_000_000
ASSET = dispatch_pb2.AssetId(uid="asset-uid", namespace="site", name="battery")
DISPATCH = "4c0f9a1e-8f5a-4a54-b7c3-0d3a5d0d8a11"
Values = Mapping[str, Sequence[float]]


def entry(
    kind: log_pb2.EntryKind, body: bytes, asset: dispatch_pb2.AssetId = ASSET
) -> log_pb2.LogEntry:
    return log_pb2.LogEntry(kind=kind, asset=asset, received_us=T0_US + 5_000_000, body=body)


def batch(columns: Values, *, t0_us: int = T0_US, sequence: int = 1) -> agent_pb2.TelemetryBatch:
    """Return samples one second apart; a name that is no Quantity becomes a named point."""
    names = dict(agent_pb2.Quantity.items())
    samples = max(map(len, columns.values()))
    return agent_pb2.TelemetryBatch(
        sequence=sequence,
        outbox_id="outbox",
        t0_us=t0_us,
        dt_us=[1_000_000 * number for number in range(samples)],
        columns=[
            agent_pb2.Column(
                quantity=agent_pb2.Quantity.Name(names.get(name.upper(), 0)),
                name="" if name.upper() in names else name,
                values=values,
            )
            for name, values in columns.items()
        ],
    )


def telemetry(
    columns: Values, *, t0_us: int = T0_US, asset: dispatch_pb2.AssetId = ASSET
) -> log_pb2.LogEntry:
    body = batch(columns, t0_us=t0_us).SerializeToString()
    return entry(log_pb2.TELEMETRY, body, asset)


def report(
    *phases: str, sequence: int, ledger_id: str = "ledger", **facts: int | float | str
) -> log_pb2.LogEntry:
    """Return a report of a dispatch that went through phases, a second each."""
    steps = [
        dispatch_pb2.Transition(phase=phase, reason=f"{phase}Reason", at_us=T0_US + 1_000_000 * n)
        for n, phase in enumerate(phases)
    ]
    message = dispatch_pb2.DispatchReport(
        sequence=sequence,
        ledger_id=ledger_id,
        dispatch_uid=DISPATCH,
        phase=phases[-1],
        reason=f"{phases[-1]}Reason",
        transitions=steps,
    )
    message.transitions[-1].reason = str(facts.get("reason", message.reason))
    for name, value in facts.items():
        setattr(message, name, value)
    return entry(log_pb2.AGENT_REPORT, message.SerializeToString())


def transition(
    phase: str,
    reason: str = "Why",
    *,
    at_us: int = T0_US,
    asset: dispatch_pb2.AssetId = ASSET,
    created_by: str = "",
    request_id: str = "",
    dispatch_uid: str = DISPATCH,
) -> log_pb2.LogEntry:
    said = control_pb2.HeadendTransition(
        asset=asset,
        dispatch_uid=dispatch_uid,
        dispatch_name="peak",
        transition=dispatch_pb2.Transition(phase=phase, reason=reason, at_us=at_us),
        created_by=created_by,
        request_id=request_id,
    )
    return entry(log_pb2.HEADEND_TRANSITION, said.SerializeToString(), asset)


def gap(sequence: int = 7) -> log_pb2.LogEntry:
    body = agent_pb2.Gap(
        sequence=sequence,
        outbox_id="outbox",
        from_us=T0_US,
        to_us=T0_US + 9,
        samples=10,
        reason="x",
    )
    return entry(log_pb2.GAP, body.SerializeToString())


def connection(event: str = "Connected", **facts: int | str) -> log_pb2.LogEntry:
    body = log_pb2.ConnectionEvent(event=event, epoch=2**64 - 1, replica="gateway-0")
    for name, value in facts.items():
        setattr(body, name, value)
    return entry(log_pb2.CONNECTION, body.SerializeToString())


def bad_entries() -> dict[str, log_pb2.LogEntry]:
    """Return entries that cannot be rows, by the reason that quarantine gives."""
    unequal = batch({"active_power_watts": [1, 2], "voltage_volts": [230]})
    doubled = batch({"active_power_watts": [1]})
    doubled.columns.append(doubled.columns[0])
    nameless = batch({"active_power_watts": [1]})
    nameless.columns[0].quantity = agent_pb2.QUANTITY_UNSPECIFIED
    overflowing = batch({"active_power_watts": [1, 2]}, t0_us=2**63 - 1)
    overflowing.dt_us[1] = 2**63 - 1
    kind = log_pb2.TELEMETRY
    refused = entry(kind, batch({"active_power_watts": [1]}).SerializeToString())
    refused.refused = "2000 samples; 1 to 1000 are allowed"
    return {
        "Unreadable": entry(kind, b"\xff\xff\xff"),
        "UnequalColumns": entry(kind, unequal.SerializeToString()),
        "DuplicateColumn": entry(kind, doubled.SerializeToString()),
        "BadColumn": entry(kind, nameless.SerializeToString()),
        "BadTime": entry(kind, overflowing.SerializeToString()),
        "NoSamples": entry(kind, agent_pb2.TelemetryBatch(sequence=1).SerializeToString()),
        "NoAsset": entry(kind, b"", dispatch_pb2.AssetId(uid="uid")),
        "NoDispatch": entry(log_pb2.AGENT_REPORT, b""),
        "NoPhase": transition(""),
        "RefusedByGateway": refused,
        "UnknownKind": entry(log_pb2.ENTRY_KIND_UNSPECIFIED, b""),
    }


def sources(*entries: log_pb2.LogEntry, offset: int = 1) -> list[LogSource]:
    return [LogSource(offset, index, each) for index, each in enumerate(entries)]


NAN = math.nan
