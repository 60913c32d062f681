"""One agent's telemetry, spoken directly: what it sent and what was acknowledged is on record."""

import asyncio
import itertools
import math
import random
import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc
from tests.field.headend import FieldAsset, FieldHeadend
from tests.field.journal import Journal, Sent, sent_batch, sent_gap

from derops.wire.v1 import agent_pb2, agent_pb2_grpc

__all__ = ["RETRY_SECONDS", "SPACING_US", "Journal", "Sender"]

_END: Any = vars(grpc.aio)["EOF"]
RETRY_SECONDS = 0.3
SPACING_US = 4_000
"""Between two samples: batches may be made fast without running ahead of the clock."""

HEARTBEAT_SECONDS = 1.0
RESENT = 0.05
"""Share of messages after which one that is not acknowledged yet is sent once more."""

_MEASUREMENT = "playedUnits"


class Sender:
    """Keeps its batches until they are acknowledged, like an agent's outbox, in memory."""

    def __init__(self, headend: FieldHeadend, asset: FieldAsset, *, samples: int = 10) -> None:
        self.journal = Journal(asset.uid, secrets.token_hex(8))
        self.on_answer: Callable[[float], None] = lambda _: None
        """Told the seconds from sending a batch to its acknowledgement."""
        self._headend, self._asset, self._samples = headend, asset, samples
        self._outbox: deque[tuple[int, agent_pb2.AgentMessage, Sent]] = deque()
        self._last = 0
        self._ledger_id = secrets.token_hex(8)
        self._next_us = time.time_ns() // 1000
        self._work = asyncio.Event()
        self._sent = self._allowed = 0
        self._sent_at: dict[int, float] = {}
        self._call: Any = None
        self._settled = asyncio.Event()

    @property
    def waiting(self) -> int:
        """Messages that are not acknowledged yet."""
        return len(self._outbox)

    def produce(self, samples: int = 0) -> None:
        """Put the next batch into the outbox."""
        self._last += 1
        count = samples or self._samples
        t0_us = self._next_us
        self._next_us = max(t0_us + count * SPACING_US, time.time_ns() // 1000)
        batch = agent_pb2.TelemetryBatch(
            sequence=self._last,
            outbox_id=self.journal.outbox_id,
            t0_us=t0_us,
            dt_us=[n * SPACING_US for n in range(count)],
            columns=self._columns(count),
        )
        message = agent_pb2.AgentMessage(telemetry=batch)
        self._outbox.append((self._last, message, sent_batch(batch)))
        self._settled.clear()
        self._work.set()

    def drop(self) -> bool:
        """Replace the older half of the outbox by a gap, as an agent at its bound does."""
        count = len(self._outbox) // 2
        if count < 2:
            return False
        dropped = [self._outbox.popleft() for _ in range(count)]
        gaps = [message.gap for _, message, _ in dropped if message.HasField("gap")]
        batches = [message.telemetry for _, message, _ in dropped if message.HasField("telemetry")]
        last = dropped[-1][0]
        gap = agent_pb2.Gap(
            sequence=last,
            outbox_id=self.journal.outbox_id,
            from_us=min([*(b.t0_us for b in batches), *(g.from_us for g in gaps)]),
            to_us=max([*(b.t0_us + b.dt_us[-1] for b in batches), *(g.to_us for g in gaps)]),
            samples=sum(len(b.dt_us) for b in batches) + sum(g.samples for g in gaps),
            reason="OutboxFull",
        )
        self._outbox.appendleft((last, agent_pb2.AgentMessage(gap=gap), sent_gap(gap)))
        self._work.set()
        return True

    async def settled(self) -> None:
        """Wait until everything that was produced is acknowledged."""
        while self._outbox:
            await self._settled.wait()

    def move(self, headend: FieldHeadend, asset: FieldAsset) -> None:
        """Dial another gateway from the next stream on."""
        self._headend, self._asset = headend, asset

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

    def _columns(self, count: int) -> list[agent_pb2.Column]:
        """Return values of which no two are the same; each column lacks some."""
        base = self._last * 10_000.0
        columns = [
            agent_pb2.Column(
                quantity=quantity,
                values=[
                    math.nan if (n + place) % 7 == 3 else base + n + place / 16
                    for n in range(count)
                ],
            )
            for place, quantity in enumerate(agent_pb2.Quantity.keys()[1:9])
        ]
        if self._last % 3 == 0:
            values = [base + n + 0.75 for n in range(count)]
            columns.append(agent_pb2.Column(name=_MEASUREMENT, values=values))
        return columns

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
            first = self._outbox[0][0] if self._outbox else self._last + 1
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
            self.journal.hello(first)
            await self._call.write(agent_pb2.AgentMessage(hello=hello))
            writer = asyncio.create_task(self._write(self._call))
            beats = asyncio.create_task(self._beat(self._call))
            try:
                await self._read(self._call)
            finally:
                for task in (writer, beats):
                    task.cancel()
                await asyncio.gather(writer, beats, return_exceptions=True)

    async def _write(self, call: Any) -> None:
        while True:
            self._work.clear()
            # Credit is for batches; a gap stands for what is no longer there.
            ready = itertools.takewhile(
                lambda item: item[0] <= self._allowed or item[1].HasField("gap"), self._outbox
            )
            for sequence, message, sent in list(ready):
                if self._sent < sequence:
                    self._sent_at[sequence] = time.monotonic()
                    self.journal.record(sequence, sent)
                    await call.write(message)
                    self._sent = sequence
                    await self._send_again(call)
            await self._work.wait()

    async def _send_again(self, call: Any) -> None:
        """Write one of the unacknowledged twice, now and then: an agent may."""
        sent = [message for sequence, message, _ in self._outbox if sequence <= self._sent]
        if sent and random.random() < RESENT:
            await call.write(random.choice(sent))

    async def _beat(self, call: Any) -> None:
        while True:
            now_us = time.time_ns() // 1000
            beat = agent_pb2.AgentMessage(heartbeat=agent_pb2.Heartbeat(agent_sent_us=now_us))
            await call.write(beat)
            await asyncio.sleep(HEARTBEAT_SECONDS)

    async def _read(self, call: Any) -> None:
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
        now = time.monotonic()
        if not self.journal.acknowledge(through, now):
            return
        while self._outbox and self._outbox[0][0] <= through:
            sequence, _, _ = self._outbox.popleft()
            self.on_answer(now - self._sent_at.pop(sequence, now))
        if not self._outbox:
            self._settled.set()
