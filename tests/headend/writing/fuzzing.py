"""Messages of agents that may be anything, and what a gateway makes of them. Pure."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from google.protobuf.message import DecodeError

from derops.wire.v1 import agent_pb2, dispatch_pb2, log_pb2
from derops_headend.fleet.reports import problem_of
from derops_headend.fleet.telemetry import check_batch, check_gap

_DAY_US = 86_400_000_000
_NOW_US = time.time_ns() // 1000
_TIMES = (
    *(_NOW_US + days * _DAY_US for days in (0, 0, 0, -1, -7, -399, -401, 1, 3)),
    *(-1, 0, 1, 2**62, -(2**63), 4_102_444_799_999_999, 4_102_444_800_000_000),
)
_OFFSETS = (0, 1, 1000, 1_000_000, 60_000_000, -1, -1_000_000, 2**62, -(2**62), 2**63 - 1)
_VALUES = (
    *(0.0, -0.0, 1.0, -5000.0, 230.1, 1e30, -1e30, 1.01e30, 1e155, 1e308, -1e308, 5e-324),
    *(float("nan"), float("inf"), float("-inf")),
)
_TEXTS = (
    *("", "fan", "active_power_watts", "quantity_99", "\0", "a\0b", "\\u0000", "'\";--", "\n"),
    *("\U0001f50b" * 64, "\ud7ff\ue000", "x" * 64, "x" * 65, "\x7f\x80", " " * 60),
)
_COUNTS = (0, 1, 2, 7, 2**31, 2**53, 2**62, 2**63 - 1)
_PHASES = ("Acked", "Active", "Complete", "Failed", "Rejected", "Nonsense", "")


def messages(chance: random.Random) -> Iterator[bytes]:
    """Yield messages without end: odd ones, those with bytes that were changed, and noise."""
    makers: tuple[Callable[[random.Random], agent_pb2.AgentMessage], ...] = (
        *(_telemetry for _ in range(7)),
        _gap,
        _report,
    )
    while True:
        wire = chance.choice(makers)(chance).SerializeToString()
        fate = chance.random()
        if fate < 0.2 and wire:
            wire = _changed(wire, chance)
        elif fate < 0.22:
            wire = chance.randbytes(chance.randrange(60))
        yield wire


def entry_of(wire: bytes, received_us: int) -> log_pb2.LogEntry | None:
    """Return what a gateway puts into the log for a message; None = the stream is ended."""
    try:
        message = agent_pb2.AgentMessage.FromString(wire)
    except DecodeError:
        return None
    refused = ""
    if message.HasField("telemetry"):
        kind, body = log_pb2.TELEMETRY, message.telemetry.SerializeToString()
        broken = check_batch(message.telemetry)
    elif message.HasField("gap"):
        kind, body = log_pb2.GAP, message.gap.SerializeToString()
        broken = check_gap(message.gap)
    elif message.HasField("report") and not problem_of(message.report):
        kind, body, broken = log_pb2.AGENT_REPORT, message.report.SerializeToString(), None
    else:
        return None
    if broken is not None:
        refused = broken.message
    asset = dispatch_pb2.AssetId(uid="u", namespace="pilot", name="battery")
    return log_pb2.LogEntry(
        kind=kind, asset=asset, received_us=received_us, body=body, refused=refused
    )


def _changed(wire: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(wire))
    return chance.choice(
        (
            wire[:place],
            wire[:place] + chance.randbytes(chance.randrange(1, 4)) + wire[place:],
            wire[:place] + bytes([wire[place] ^ 1 << chance.randrange(8)]) + wire[place + 1 :],
        )
    )


def _telemetry(chance: random.Random) -> agent_pb2.AgentMessage:
    samples = chance.choice((0, 1, 1, 1, 2, 5))
    values = samples if chance.random() < 0.9 else chance.randrange(4)
    batch = agent_pb2.TelemetryBatch(
        sequence=chance.choice(_COUNTS),
        outbox_id=chance.choice(_TEXTS),
        t0_us=chance.choice(_TIMES) + chance.randrange(600_000_000) * (chance.random() < 0.8),
        dt_us=[0, *(chance.choice(_OFFSETS) for _ in range(samples - 1))][:samples],
    )
    for _ in range(chance.choice((0, 1, 1, 2, 3))):
        named = chance.random() < 0.3
        batch.columns.add(
            quantity=0 if named else chance.choice((1, 1, 2, 3, 8, 12, 99, 2**31 - 1)),
            name=chance.choice(_TEXTS) if named else "",
            values=[chance.choice(_VALUES) for _ in range(values)],
        )
    return agent_pb2.AgentMessage(telemetry=batch)


def _gap(chance: random.Random) -> agent_pb2.AgentMessage:
    gap = agent_pb2.Gap(
        sequence=chance.choice((*_COUNTS, 2**64 - 1)),
        outbox_id=chance.choice(_TEXTS),
        from_us=chance.choice(_TIMES),
        to_us=chance.choice(_TIMES),
        samples=chance.choice((*_COUNTS, 2**64 - 1)),
        reason=chance.choice(_TEXTS),
    )
    return agent_pb2.AgentMessage(gap=gap)


def _report(chance: random.Random) -> agent_pb2.AgentMessage:
    facts: dict[str, Any] = {
        name: chance.choice(_TIMES) for name in ("accepted_us", "applied_us", "ended_us")
    }
    report = dispatch_pb2.DispatchReport(
        sequence=chance.choice((*_COUNTS, 2**64 - 1)),
        ledger_id=chance.choice(_TEXTS),
        dispatch_uid=chance.choice(_TEXTS),
        phase=chance.choice(_PHASES),
        reason=chance.choice(_TEXTS),
        message=chance.choice(_TEXTS),
        transitions=[
            dispatch_pb2.Transition(
                phase=chance.choice(_PHASES), reason="r", at_us=chance.choice(_TIMES)
            )
            for _ in range(chance.randrange(3))
        ],
        delivered_watt_hours=chance.choice(_VALUES),
        active_milliseconds=chance.choice(_COUNTS),
        evidence=chance.choice(_TEXTS),
        verified_reason=chance.choice(_TEXTS),
        clock_offset_milliseconds=chance.choice(_OFFSETS),
        **(facts if chance.random() < 0.3 else {}),
    )
    return agent_pb2.AgentMessage(report=report)
