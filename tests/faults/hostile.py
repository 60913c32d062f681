"""A peer with a good certificate and bad intentions."""

import asyncio
import random
import secrets
import time
from collections.abc import Callable
from typing import Any

import grpc
from tests.field.headend import FieldAsset, FieldHeadend

from derops.wire.v1 import agent_pb2, dispatch_pb2

_END: Any = vars(grpc.aio)["EOF"]
_OUTBOX, _LEDGER = "o", "l"
_WINDOW = 16
"""Batches that the first credit covers."""

_ODD = (float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 0.0, 5e-324)
Message = agent_pb2.AgentMessage


async def attack(headend: FieldHeadend, asset: FieldAsset, chance: random.Random) -> None:
    """Break every rule, each on a stream of its own: an end would save the headend from the rest.

    Ends once every stream was ended by the gateway, or was heard to its end.
    """
    for make in chance.sample(_WAYS, len(_WAYS)):
        async with asyncio.timeout(20):
            try:
                await _attack_once(headend, asset, make(chance), patient=make in _PATIENT)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
                continue  # refused, as it should be


async def _attack_once(
    headend: FieldHeadend, asset: FieldAsset, messages: list[bytes], *, patient: bool
) -> None:
    leaf = asset.leaf
    channel = grpc.aio.secure_channel(
        headend.gateway_address,
        grpc.ssl_channel_credentials(headend.server_ca.pem, leaf.key, leaf.pem),
        options=[
            ("grpc.ssl_target_name_override", "derops-gateway"),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
    async with channel:
        connect: Any = channel.stream_stream
        call = connect("/derops.wire.v1.AgentLink/Connect")()
        await call.write(_hello())
        # Before its credit all telemetry would be dropped unread.
        allowed = await _read_credit(call)
        for number, message in enumerate(messages, start=1):
            while patient and number > allowed:
                allowed = await _read_credit(call)
            await call.write(message)
        await call.done_writing()
        while await call.read() is not _END:
            pass


async def _read_credit(call: Any) -> int:
    """Read to the next credit; return through which sequence it goes."""
    while (wire := await call.read()) is not _END:
        message = agent_pb2.GatewayMessage.FromString(wire)
        if message.HasField("credit"):
            return message.credit.send_through
    raise asyncio.InvalidStateError("ended")


def _hello() -> bytes:
    hello = agent_pb2.Hello(
        protocol=1,
        epoch=time.time_ns() // 1_000_000,
        instance_id=secrets.token_hex(4),
        ledger_id=_LEDGER,
        outbox_id=_OUTBOX,
        first_sequence=1,
    )
    return Message(hello=hello).SerializeToString()


def _batch(sequence: int, **changes: Any) -> bytes:
    good: dict[str, Any] = {
        "sequence": sequence,
        "outbox_id": _OUTBOX,
        "t0_us": time.time_ns() // 1000,
        "dt_us": [0],
        "columns": [agent_pb2.Column(quantity=agent_pb2.ACTIVE_POWER_WATTS, values=[1.0])],
    }
    return Message(telemetry=agent_pb2.TelemetryBatch(**(good | changes))).SerializeToString()


def _odd_batches(chance: random.Random) -> list[bytes]:
    """In order, and each with something that is wrong within."""
    shapes = [(0, 1), (1, 0), (1, 1), (2, 1), (2, 2), (70, 1), (1, 1001)]
    batches = []
    for sequence in range(1, _WINDOW + 1):
        columns, values = chance.choice(shapes)
        batches.append(
            _batch(
                sequence,
                t0_us=chance.choice([time.time_ns() // 1000, -1, 2**62, -(2**63), 0, 1]),
                dt_us=chance.choice([[0], [0, 1], [5], [], [0] * 1001, [0, -(2**62)], [0, 0]]),
                columns=[
                    agent_pb2.Column(
                        quantity=chance.choice(["ACTIVE_POWER_WATTS", "VOLTAGE_VOLTS"]),
                        name=chance.choice(["", "", "x" * 300, "\0"]),
                        values=[chance.choice(_ODD)] * values,
                    )
                    for _ in range(columns)
                ],
            )
        )
    return batches


def _odd_values(_: random.Random) -> list[bytes]:
    """In order and in shape: each value that is a number to the wire and to nobody else."""
    return [
        _batch(
            sequence,
            columns=[
                agent_pb2.Column(quantity=agent_pb2.ACTIVE_POWER_WATTS, values=[odd]),
                agent_pb2.Column(quantity=99, values=[odd]),  # type: ignore[arg-type]
                agent_pb2.Column(name="a\0\ufffd'\";--", values=[odd]),
            ],
        )
        for sequence, odd in enumerate(_ODD, start=1)
    ]


def _jumps(chance: random.Random) -> list[bytes]:
    return [_batch(1), _batch(chance.choice([0, 3, _WINDOW, 2**62 - 1, 2**63, 2**64 - 1]))]


def _foreign(chance: random.Random) -> list[bytes]:
    return [_batch(1), _batch(2, outbox_id=chance.choice(["another", "", "\0", "x" * 60_000]))]


def _flood(_: random.Random) -> list[bytes]:
    """All credit ignored."""
    return [_batch(sequence) for sequence in range(1, 400)]


def _again(_: random.Random) -> list[bytes]:
    """The same instant with ever other values."""
    now_us = time.time_ns() // 1000
    column = agent_pb2.ACTIVE_POWER_WATTS
    return [
        _batch(n, t0_us=now_us, columns=[agent_pb2.Column(quantity=column, values=[float(n)])])
        for n in range(1, _WINDOW + 1)
    ]


def _huge(chance: random.Random) -> list[bytes]:
    return [_batch(1, dt_us=[0] * chance.choice([70_000, 700_000]))]


def _gaps(chance: random.Random) -> list[bytes]:
    return [
        Message(
            gap=agent_pb2.Gap(
                sequence=chance.choice([1, 5, 2**62, 2**64 - 1]),
                outbox_id=_OUTBOX,
                from_us=chance.choice([-(2**63), 0, 5]),
                to_us=chance.choice([1, 9, 2**62, 2**63 - 1]),
                samples=chance.choice([0, 2**64 - 1]),
                reason=chance.choice(["", "x" * 10_000, "\0"]),
            )
        ).SerializeToString()
        for _ in range(3)
    ]


def _reports(chance: random.Random) -> list[bytes]:
    return [
        Message(
            report=dispatch_pb2.DispatchReport(
                sequence=number,
                ledger_id=_LEDGER,
                dispatch_uid=chance.choice(["x", "", "y" * 3000]),
                phase=chance.choice(["Complete", "Nonsense", ""]),
                applied_us=chance.choice([0, -1, 2**62]),
                delivered_watt_hours=chance.choice(_ODD),
            )
        ).SerializeToString()
        for number in range(100)
    ]


def _second_hello(_: random.Random) -> list[bytes]:
    return [_batch(1), _hello(), _batch(2)]


def _random_fields(chance: random.Random) -> list[bytes]:
    """Random bytes as the content of each field of a message and of a batch."""
    return [
        bytes([tag]) + bytes([len(noise)]) + noise
        for tag in chance.sample([0x0A, 0x12, 0x1A, 0x22, 0x2A, 0x32, 0x7A], 7)
        for noise in [chance.randbytes(chance.choice([0, 1, 10, 100]))]
    ]


def _cut_short(chance: random.Random) -> list[bytes]:
    message = _batch(1)
    return [message[: chance.randrange(1, len(message))]]


_WAYS: tuple[Callable[[random.Random], list[bytes]], ...] = (
    _odd_batches,
    _odd_values,
    _jumps,
    _foreign,
    _flood,
    _again,
    _huge,
    _gaps,
    _reports,
    _second_hello,
    _random_fields,
    _cut_short,
)
_PATIENT = (_odd_batches, _odd_values, _again)
"""What is wrong is within the batches: they come as credit allows."""
