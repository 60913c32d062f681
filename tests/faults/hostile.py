"""A peer with a good certificate and bad intentions."""

import asyncio
import random
import secrets
import time
from typing import Any

import grpc
from tests.field.headend import FieldAsset, FieldHeadend

from derops.wire.v1 import agent_pb2, dispatch_pb2

_MESSAGES = 60


async def attack(headend: FieldHeadend, asset: FieldAsset, chance: random.Random) -> None:
    """Send batches, reports, gaps and bytes that break every rule, over one stream or several."""
    async with asyncio.timeout(20):
        for _ in range(3):
            try:
                await _attack_once(headend, asset, chance)
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
                continue  # refused, as it should be


async def _attack_once(headend: FieldHeadend, asset: FieldAsset, chance: random.Random) -> None:
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
        hello = agent_pb2.Hello(
            protocol=1,
            epoch=time.time_ns() // 1_000_000,
            instance_id=secrets.token_hex(4),
            ledger_id="l",
            outbox_id="o",
            first_sequence=1,
        )
        await call.write(agent_pb2.AgentMessage(hello=hello).SerializeToString())
        for number in range(_MESSAGES):
            await call.write(_bad(number, chance))
        await call.done_writing()
        while await call.read() is not vars(grpc.aio)["EOF"]:
            pass


def _bad(number: int, chance: random.Random) -> bytes:
    odd = chance.choice([float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 0.0, 5e-324])
    batch = agent_pb2.TelemetryBatch(
        sequence=chance.choice([number + 1, 0, 2**63, number + 1000]),
        outbox_id=chance.choice(["o", "o", "o", "another", ""]),
        t0_us=chance.choice([time.time_ns() // 1000, -1, 2**62, 0]),
        dt_us=chance.choice([[0], [0, 1], [5], [], [0] * 1001, [0, -(2**62)]]),
        columns=[
            agent_pb2.Column(
                quantity=chance.choice(["ACTIVE_POWER_WATTS", "VOLTAGE_VOLTS"]),
                name=chance.choice(["", "x" * 300, "\0"]),
                values=[odd] * chance.choice([0, 1, 2, 1001]),
            )
            for _ in range(chance.choice([0, 1, 2, 70]))
        ],
    )
    report = dispatch_pb2.DispatchReport(
        sequence=number + 1,
        ledger_id="l",
        dispatch_uid=chance.choice(["x", "", "y" * 3000]),
        phase=chance.choice(["Complete", "Nonsense", ""]),
        applied_us=chance.choice([0, -1, 2**62]),
        delivered_watt_hours=odd,
    )
    gap = agent_pb2.Gap(sequence=number + 1, outbox_id="o", from_us=5, to_us=chance.choice([1, 9]))
    message = chance.choice(
        [
            agent_pb2.AgentMessage(telemetry=batch),
            agent_pb2.AgentMessage(telemetry=batch),
            agent_pb2.AgentMessage(report=report),
            agent_pb2.AgentMessage(gap=gap),
            agent_pb2.AgentMessage(hello=agent_pb2.Hello(protocol=9)),
        ]
    ).SerializeToString()
    if chance.random() < 0.1:
        return chance.randbytes(chance.choice([1, 10, 1000]))
    if chance.random() < 0.05:
        return message[: len(message) // 2]
    return message
