"""P3, P8, P9, P10, P14: what the gateway costs, beside a bare grpc.aio server over mTLS."""

import asyncio
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
from tests.bench import limits
from tests.bench.echo import Echo
from tests.bench.results import Result
from tests.field.headend import FieldAsset, FieldHeadend, PlayedOperator
from tests.field.load import Load
from tests.stack.postgres import PostgresServer

from derops.wire.v1 import agent_pb2, agent_pb2_grpc, dispatch_pb2

_SECONDS = 10.0
_IDLE_AGENTS = 1000
_LARGEST_SAMPLES = 880
"""With eight quantities: 64,000 bytes, just below the cap of a batch."""

_DISPATCHES = 150


@contextmanager
def _headend(assets: int) -> Iterator[FieldHeadend]:
    with ExitStack() as opened:
        directory = Path(opened.enter_context(tempfile.TemporaryDirectory()))
        server = opened.enter_context(PostgresServer())
        url = server.create_database("bench")
        headend = opened.enter_context(FieldHeadend(directory, assets=assets, database_url=url))
        asyncio.run(headend.give_desired_state())
        yield headend


def _cpu_per_message(pid: int, load: Load) -> float:
    time.sleep(3)
    first, used = load.count(), limits.cpu_seconds(pid)
    time.sleep(_SECONDS)
    last, after = load.count(), limits.cpu_seconds(pid)
    return (after - used) / (last.batches - first.batches)


def measure_cpu() -> Iterator[Result]:
    """P3: processor time of a telemetry message, 100 agents with 5 batches a second each.

    Limit: that of an echo of the same bytes at the same rate.
    """
    plan = {"samples": 10, "batches_per_second": 5.0}
    with _headend(100) as headend:
        headend.parts["writer"].terminate()
        with Load(headend, headend.assets, **plan) as load:
            value = _cpu_per_message(headend.parts["gateway"].pid, load)
        with Echo(headend) as echo, Load(echo, headend.assets, **plan) as load:
            limit = _cpu_per_message(echo.pid, load)
    yield Result(
        name="P3_cpu_per_message", value=value * 1e6, unit="us", limit=limit * 1e6, goal="<= 1.3"
    )


def measure_idle_agents() -> Iterator[Result]:
    """P9: memory of the gateway for each of 1,000 idle agents; limit = that of the bare server.

    P14 beside it: agents connected for each second of the server's processor; P10: memory for each
    after one message of the largest size.
    """
    with _headend(_IDLE_AGENTS) as headend:
        headend.parts["writer"].terminate()
        pid = headend.parts["gateway"].pid
        memory, cpu = limits.resident_kibibytes(pid), limits.cpu_seconds(pid)
        with Load(headend, headend.assets, batches_per_second=-1.0):
            idle = (limits.resident_kibibytes(pid) - memory) / _IDLE_AGENTS
            connected = _IDLE_AGENTS / (limits.cpu_seconds(pid) - cpu)
        with Echo(headend) as echo:
            memory, cpu = limits.resident_kibibytes(echo.pid), limits.cpu_seconds(echo.pid)
            with Load(echo, headend.assets, batches_per_second=-1.0):
                bare = (limits.resident_kibibytes(echo.pid) - memory) / _IDLE_AGENTS
                bare_connected = _IDLE_AGENTS / (limits.cpu_seconds(echo.pid) - cpu)
    yield Result(name="P9_memory_per_agent", value=idle, unit="KiB", limit=bare, goal="<= 1.1")
    yield Result(name="P9_memory_per_agent_at_most", value=idle, unit="KiB", limit=100.0)
    yield Result(
        name="P14_agents_connected_per_cpu_second",
        value=connected,
        unit="agents/s",
        limit=bare_connected,
        goal=">= 0.8",
    )
    with _headend(_IDLE_AGENTS) as headend:
        headend.parts["writer"].terminate()
        pid = headend.parts["gateway"].pid
        memory = limits.resident_kibibytes(pid)
        with Load(
            headend,
            headend.assets,
            samples=1,
            batches_per_second=0.5,
            first_message_samples=_LARGEST_SAMPLES,
        ) as load:
            while load.count().batches < _IDLE_AGENTS:
                time.sleep(0.2)
            large = (limits.resident_kibibytes(pid) - memory) / _IDLE_AGENTS
    yield Result(
        name="P10_memory_per_agent_after_64_KB", value=large, unit="KiB", limit=idle, goal="<= 1.2"
    )


def measure_dispatch_under_load() -> Iterator[Result]:
    """P8: p99 of a dispatch from the operator to an agent and its report back, at 150 % load.

    Load of 1 is what one load process gets acknowledged when it sends as fast as credit allows; at
    150 % two of them do. Limit: the same p99 beside half that load.
    """
    with _headend(101) as headend:
        target, *others = headend.assets
        with Load(headend, others) as load:
            time.sleep(3)
            first, begun = load.count(), time.perf_counter()
            time.sleep(_SECONDS)
            saturated = (load.count().batches - first.batches) / (time.perf_counter() - begun)
        idle = asyncio.run(_round_trips(headend, target))
        with Load(headend, others, batches_per_second=saturated / 2 / len(others)):
            time.sleep(3)
            beside_half = asyncio.run(_round_trips(headend, target))
        with Load(headend, others[:50]), Load(headend, others[50:]):
            time.sleep(3)
            overloaded = asyncio.run(_round_trips(headend, target))
    yield Result(name="P8_dispatch_p50_idle", value=_p(idle, 0.5), unit="ms", limit=_p(idle, 0.5))
    yield Result(
        name="P8_dispatch_p99_overloaded",
        value=_p(overloaded, 0.99),
        unit="ms",
        limit=_p(beside_half, 0.99),
        goal="<= 2",
    )


def _p(times: list[float], share: float) -> float:
    return sorted(times)[int(len(times) * share)] * 1e3


async def _round_trips(headend: FieldHeadend, asset: FieldAsset) -> list[float]:
    channel = grpc.aio.secure_channel(
        headend.gateway_address,
        grpc.ssl_channel_credentials(headend.server_ca.pem, asset.leaf.key, asset.leaf.pem),
        options=[
            ("grpc.ssl_target_name_override", "derops-gateway"),
            ("grpc.use_local_subchannel_pool", 1),
        ],
    )
    async with channel, headend.operator() as operator:
        call: Any = agent_pb2_grpc.AgentLinkStub(channel).Connect()  # type: ignore[no-untyped-call]
        instance = secrets.token_hex(4)
        hello = agent_pb2.Hello(
            protocol=1,
            epoch=time.time_ns() // 1_000_000,
            instance_id=instance,
            ledger_id="bench",
            outbox_id="bench",
            first_sequence=1,
        )
        await call.write(agent_pb2.AgentMessage(hello=hello))
        answering = asyncio.create_task(_answer(call))
        times = [await _round_trip(operator, asset, f"{instance}-{n}") for n in range(_DISPATCHES)]
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)
    return times


async def _round_trip(operator: PlayedOperator, asset: FieldAsset, uid: str) -> float:
    order = dispatch_pb2.Dispatch(
        uid=uid,
        asset_uid=asset.uid,
        generation=1,
        setpoint=dispatch_pb2.Setpoint(mode="ActivePower", watts=1),
    )
    begun = time.perf_counter()
    await operator.say(dispatch=order)
    await operator.report(uid)
    elapsed = time.perf_counter() - begun
    await operator.say(dispatch_removed=uid)
    return elapsed


async def _answer(call: Any) -> None:
    sequence = 0
    while True:
        message = await call.read()
        if message.WhichOneof("kind") == "dispatch":
            sequence += 1
            report = dispatch_pb2.DispatchReport(
                sequence=sequence,
                ledger_id="bench",
                dispatch_uid=message.dispatch.uid,
                phase="Acked",
            )
            await call.write(agent_pb2.AgentMessage(report=report))
