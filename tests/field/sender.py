"""One agent's telemetry, spoken directly: what it sent and what was acknowledged is on record."""

import asyncio
import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from tests.field.headend import FieldAsset, FieldHeadend

from derops.wire.v1 import agent_pb2, agent_pb2_grpc

_END: Any = vars(grpc.aio)["EOF"]
RETRY_SECONDS = 0.3
SPACING_US = 4_000
"""Between two samples: batches may be made fast without running ahead of the clock."""


@dataclass(slots=True)
class Journal:
    """Everything one sender did. Times are microseconds since 1970."""

    asset_uid: str
    outbox_id: str
    sent: dict[int, list[tuple[int, float]]] = field(default_factory=dict)
    """Samples (time, watts) of each sequence."""
    acknowledged: int = 0
    acknowledged_at: list[tuple[float, int]] = field(default_factory=list)
    """When (monotonic, s) which sequence was acknowledged."""
    ends: list[str] = field(default_factory=list)
    """Why streams ended."""


class Sender:
    """Keeps its batches until they are acknowledged, like an agent's outbox, in memory."""

    def __init__(self, headend: FieldHeadend, asset: FieldAsset, *, samples: int = 10) -> None:
        self.journal = Journal(asset.uid, secrets.token_hex(8))
        self.on_answer: Callable[[float], None] = lambda _: None
        """Told the seconds from sending a batch to its acknowledgement."""
        self._headend, self._asset, self._samples = headend, asset, samples
        self._outbox: deque[tuple[int, agent_pb2.AgentMessage]] = deque()
        self._last = 0
        self._ledger_id = secrets.token_hex(8)
        self._next_us = time.time_ns() // 1000
        self._work = asyncio.Event()
        self._sent = self._allowed = 0
        self._sent_at: dict[int, float] = {}
        self._call: Any = None
        self._settled = asyncio.Event()

    def produce(self) -> None:
        """Put the next batch into the outbox."""
        self._last += 1
        times = [self._next_us + n * SPACING_US for n in range(self._samples)]
        self._next_us = max(times[-1] + SPACING_US, time.time_ns() // 1000)
        watts = [float(self._last * 10_000 + n) for n in range(self._samples)]
        self.journal.sent[self._last] = list(zip(times, watts, strict=True))
        batch = agent_pb2.TelemetryBatch(
            sequence=self._last,
            outbox_id=self.journal.outbox_id,
            t0_us=times[0],
            dt_us=[each - times[0] for each in times],
            columns=[
                agent_pb2.Column(quantity=agent_pb2.ACTIVE_POWER_WATTS, values=watts),
                *(
                    agent_pb2.Column(quantity=name, values=[230.5] * self._samples)
                    for name in agent_pb2.Quantity.keys()[2:9]
                ),
            ],
        )
        self._outbox.append((self._last, agent_pb2.AgentMessage(telemetry=batch)))
        self._settled.clear()
        self._work.set()

    async def settled(self) -> None:
        """Wait until everything that was produced is acknowledged."""
        while self._outbox:
            await self._settled.wait()

    def cut(self) -> None:
        """End the stream as a link does that drops; the next one follows."""
        if self._call is not None:
            self._call.cancel()

    async def run(self) -> None:
        """Keep a stream until cancelled."""
        while True:
            try:
                await self._serve()
            except grpc.aio.AioRpcError as error:
                self.journal.ends.append(f"{error.code().name}: {error.details()}")
            except (asyncio.InvalidStateError, grpc.aio.UsageError) as error:
                self.journal.ends.append(type(error).__name__)
            except asyncio.CancelledError:
                if asyncio.current_task().cancelling():  # type: ignore[union-attr]
                    raise
                self.journal.ends.append("cut")
            await asyncio.sleep(random.uniform(0, RETRY_SECONDS))

    async def _serve(self) -> None:
        leaf = self._asset.leaf
        channel = grpc.aio.secure_channel(
            self._headend.gateway_address,
            grpc.ssl_channel_credentials(self._headend.server_ca.pem, leaf.key, leaf.pem),
            options=[
                ("grpc.ssl_target_name_override", "derops-gateway"),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 100),
            ],
        )
        async with channel:
            self._call = agent_pb2_grpc.AgentLinkStub(channel).Connect()  # type: ignore[no-untyped-call]
            first = self.journal.acknowledged + 1
            self._sent = self._allowed = first - 1
            hello = agent_pb2.Hello(
                protocol=1,
                epoch=time.time_ns() // 1_000_000,
                instance_id=self._ledger_id,
                ledger_id=self._ledger_id,
                outbox_id=self.journal.outbox_id,
                first_sequence=first,
                capability=agent_pb2.Capability(modes=["ActivePower"], driver="played"),
            )
            await self._call.write(agent_pb2.AgentMessage(hello=hello))
            writer = asyncio.create_task(self._write(self._call))
            try:
                await self._read(self._call)
            finally:
                writer.cancel()
                await asyncio.gather(writer, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        while True:
            self._work.clear()
            for sequence, message in list(self._outbox):
                if self._sent < sequence <= self._allowed:
                    self._sent_at[sequence] = time.monotonic()
                    await call.write(message)
                    self._sent = sequence
            await self._work.wait()

    async def _read(self, call: Any) -> None:
        beat = agent_pb2.AgentMessage(
            heartbeat=agent_pb2.Heartbeat(agent_sent_us=time.time_ns() // 1000)
        )
        await call.write(beat)
        while (message := await call.read()) is not _END:
            kind = message.WhichOneof("kind")
            if kind == "credit":
                self._acknowledge(message.credit.acknowledged_through)
                self._allowed = message.credit.send_through
                self._work.set()
            elif kind == "bye":
                self.journal.ends.append(f"{message.bye.reason}: {message.bye.message}")
                return
        self.journal.ends.append("ended")

    def _acknowledge(self, through: int) -> None:
        if through <= self.journal.acknowledged:
            return
        now = time.monotonic()
        self.journal.acknowledged = through
        self.journal.acknowledged_at.append((now, through))
        while self._outbox and self._outbox[0][0] <= through:
            sequence, _ = self._outbox.popleft()
            self.on_answer(now - self._sent_at.pop(sequence, now))
        if not self._outbox:
            self._settled.set()
