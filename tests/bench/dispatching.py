"""P6, P7, P8, P11: dispatches from the operator's stream to agents, and their reports back."""

import asyncio
import secrets
import statistics
import time
from collections.abc import Iterator
from typing import Any

import grpc
from tests.bench import limits
from tests.bench.echo import Echo, dispatch_of
from tests.bench.gateway import bench_headend
from tests.bench.results import Result
from tests.field.agents import Agents
from tests.field.headend import FieldAsset, FieldHeadend, PlayedOperator
from tests.field.load import Load

_SECONDS, _WARM_SECONDS = 10.0, 3.0
_DISPATCHES = 200
_OTHERS = 100
_FANNED = 200
_FANS = 7


def measure_round_trips() -> Iterator[Result]:
    """P6, P7, P8: until the operator hears that a real agent has accepted, on its own disk.

    P6 on an idle fleet and P7 beside half of saturation; limit: ping-pong on one stream of the bare
    transport, and one write with fdatasync. P8 beside half as much again as saturation; limit: P7.
    Load of 1 is what one load process gets acknowledged when it sends as fast as credit allows; at
    150 % two of them do.
    """
    with bench_headend(1 + _OTHERS) as headend:
        target, *others = headend.assets
        with Load(headend, others) as load:
            time.sleep(_WARM_SECONDS)
            first, begun = load.count(), time.perf_counter()
            time.sleep(_SECONDS)
            saturated = (load.count().batches - first.batches) / (time.perf_counter() - begun)
        with Echo(headend) as echo:
            bare = statistics.median(asyncio.run(_ping(headend, echo, target)))
        _, synced = limits.synced_writes(headend.directory, 4096)
        agents = Agents(headend, [target])
        agents.start()
        try:
            idle = asyncio.run(_round_trips(headend, target))
            with Load(headend, others, batches_per_second=saturated / 2 / _OTHERS):
                time.sleep(_WARM_SECONDS)
                beside_half = asyncio.run(_round_trips(headend, target))
            with (
                Load(headend, others[: _OTHERS // 2]),
                Load(headend, others[_OTHERS // 2 :]),
            ):
                time.sleep(_WARM_SECONDS)
                overloaded = asyncio.run(_round_trips(headend, target))
        finally:
            agents.process.terminate()
    limit = (bare + synced) * 1e3
    yield Result(name="P6_dispatch_p50", value=_p(idle, 0.5), unit="ms", limit=limit, goal="<= 2")
    half = _p(beside_half, 0.99)
    yield Result(
        name="P7_dispatch_p99_beside_half", value=half, unit="ms", limit=limit, goal="<= 15"
    )
    yield Result(
        name="P8_dispatch_p99_overloaded",
        value=_p(overloaded, 0.99),
        unit="ms",
        limit=half,
        goal="<= 2",
    )


def measure_fan_out() -> Iterator[Result]:
    """P11: one dispatch to each of two hundred agents, until the operator has all their answers.

    Limit: a loop that writes the same to as many streams of the bare transport, and its answers.
    """
    with bench_headend(_FANNED) as headend:
        with Load(headend, headend.assets, batches_per_second=-1.0):
            product = asyncio.run(_fans(headend))
        with Echo(headend) as echo, Load(echo, headend.assets, batches_per_second=-1.0):
            bare = [echo.fan_out() for _ in range(_FANS)]
    yield Result(
        name="P11_fan_out",
        value=_FANNED / statistics.median(product),
        unit="dispatches/s",
        limit=_FANNED / statistics.median(bare),
        goal=">= 0.7",
    )


def _p(seconds: list[float], share: float) -> float:
    return sorted(seconds)[int(len(seconds) * share)] * 1e3


async def _round_trips(headend: FieldHeadend, asset: FieldAsset) -> list[float]:
    seconds = []
    run = secrets.token_hex(4)
    async with headend.operator() as operator:
        for number in range(_DISPATCHES):
            order = dispatch_of(asset.uid, f"{run}-{number}")
            begun = time.perf_counter()
            await operator.say(dispatch=order)
            await _until(operator, order.uid, "Acked")
            seconds.append(time.perf_counter() - begun)
            order.cancelled = True
            await operator.say(dispatch=order)
            await _until(operator, order.uid, "Cancelled")
            await operator.accepted(await operator.say(dispatch_removed=order.uid))
    return seconds


async def _until(operator: PlayedOperator, dispatch_uid: str, phase: str) -> None:
    while (report := await operator.report(dispatch_uid)).phase != phase:
        assert report.phase == "Acked", f"{report.phase}: {report.reason}, {report.message}"


async def _ping(headend: FieldHeadend, echo: Echo, asset: FieldAsset) -> list[float]:
    """Return the seconds from writing a message to its answer, on one stream."""
    channel = grpc.aio.secure_channel(
        echo.gateway_address,
        grpc.ssl_channel_credentials(headend.server_ca.pem, asset.leaf.key, asset.leaf.pem),
        options=[("grpc.ssl_target_name_override", "derops-gateway")],
    )
    seconds = []
    order = dispatch_of(asset.uid).SerializeToString()
    async with channel:
        connect: Any = channel.stream_stream
        call = connect("/derops.wire.v1.AgentLink/Connect")()
        for _ in range(_DISPATCHES):
            begun = time.perf_counter()
            await call.write(order)
            await call.read()
            seconds.append(time.perf_counter() - begun)
        call.cancel()
    return seconds


async def _fans(headend: FieldHeadend) -> list[float]:
    seconds = []
    run = secrets.token_hex(4)
    async with headend.operator() as operator:
        for number in range(_FANS):
            orders = [
                dispatch_of(asset.uid, f"{run}-{number}-{asset.uid}") for asset in headend.assets
            ]
            begun = time.perf_counter()
            waited = asyncio.create_task(_hear_all(operator, {order.uid for order in orders}))
            await operator.say_all({"dispatch": order} for order in orders)
            await waited
            seconds.append(time.perf_counter() - begun)
            removed = await operator.say_all({"dispatch_removed": order.uid} for order in orders)
            await operator.accepted(removed)
    return seconds


async def _hear_all(operator: PlayedOperator, dispatch_uids: set[str]) -> None:
    while dispatch_uids:
        message = await operator.hear()
        dispatch_uids.discard(message.report.report.dispatch_uid)
