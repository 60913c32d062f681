"""Telemetry as fast as credit allows, or at a rate, from a process of its own.

``python -m tests.field.load`` reads a Plan as JSON from stdin, prints ``ready`` once all agents are
connected, sends until stdin closes, and prints what it counted as JSON. Agents that never send
telemetry answer each dispatch as accepted, at once.
"""

import asyncio
import dataclasses
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

import grpc
from tests.field.headend import FieldAsset
from tests.pki import Authority
from tests.stack import places

from derops.wire.v1 import agent_pb2, dispatch_pb2

_END: Any = vars(grpc.aio)["EOF"]
_SPACING_US = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to send; certificates and keys are PEM text."""

    address: str
    ca: str
    certificates: list[str]
    keys: list[str]
    samples: int = 10
    batches_per_second: float = 0.0
    """For each agent; 0 = as fast as credit allows, below 0 = never."""
    first_message_samples: int = 0
    """Samples of one greater batch before the others."""


class _Agent:
    """One stream that makes its batches when it may send them."""

    def __init__(self, plan: Plan, number: int) -> None:
        self._plan, self._number = plan, number
        self._outbox_id = secrets.token_hex(8)
        self._sent = self._allowed = self._reports = 0
        self.acknowledged = 0
        self.seconds: list[float] = []
        """From writing a batch to its acknowledgement."""
        self.connected = asyncio.Event()
        self._sent_at: dict[int, float] = {}
        self._work = asyncio.Event()
        self._columns = {n: _columns(n) for n in {plan.samples, plan.first_message_samples} if n}

    async def run(self) -> None:
        plan = self._plan
        channel = grpc.aio.secure_channel(
            plan.address,
            grpc.ssl_channel_credentials(
                plan.ca.encode(),
                plan.keys[self._number].encode(),
                plan.certificates[self._number].encode(),
            ),
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
                instance_id=self._outbox_id,
                ledger_id=self._outbox_id,
                outbox_id=self._outbox_id,
                first_sequence=1,
            )
            await call.write(agent_pb2.AgentMessage(hello=hello).SerializeToString())
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._read(call))
                if plan.batches_per_second >= 0:
                    tasks.create_task(self._write(call))

    async def _read(self, call: Any) -> None:
        while (wire := await call.read()) is not _END:
            message = agent_pb2.GatewayMessage.FromString(wire)
            kind = message.WhichOneof("kind")
            if kind == "credit":
                self.connected.set()
                now = time.monotonic()
                for sequence in range(
                    self.acknowledged + 1, message.credit.acknowledged_through + 1
                ):
                    self.seconds.append(now - self._sent_at.pop(sequence))
                self.acknowledged = message.credit.acknowledged_through
                self._allowed = message.credit.send_through
                self._work.set()
            elif kind == "dispatch" and self._plan.batches_per_second < 0:
                await call.write(self._accept(message.dispatch.uid))
            elif kind == "bye":
                raise RuntimeError(f"the gateway ended it: {message.bye}")

    def _accept(self, dispatch_uid: str) -> bytes:
        self._reports += 1
        report = dispatch_pb2.DispatchReport(
            sequence=self._reports,
            ledger_id=self._outbox_id,
            dispatch_uid=dispatch_uid,
            phase="Acked",
        )
        return agent_pb2.AgentMessage(report=report).SerializeToString()

    async def _write(self, call: Any) -> None:
        plan = self._plan
        period = 1 / plan.batches_per_second if plan.batches_per_second else 0.0
        # Agents of a fleet are not in step.
        due = time.monotonic() + period * (self._number / len(plan.keys))
        while True:
            if period:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                due += period
            while self._sent >= self._allowed:
                self._work.clear()
                await self._work.wait()
            self._sent += 1
            self._sent_at[self._sent] = time.monotonic()
            samples = plan.samples
            if self._sent == 1 and plan.first_message_samples:
                samples = plan.first_message_samples
            await call.write(self._batch(samples))

    def _batch(self, samples: int) -> bytes:
        head = agent_pb2.TelemetryBatch(
            sequence=self._sent,
            outbox_id=self._outbox_id,
            t0_us=_START_US + self._sent * max(self._columns) * _SPACING_US,
        ).SerializeToString()
        body = head + self._columns[samples]  # messages in a row are one message
        return b"\x12" + _varint(len(body)) + body


_START_US = time.time_ns() // 1000
"""Samples are of now, and far denser than a device's: a roll-up of such minutes is no measure."""


def _columns(samples: int) -> bytes:
    batch = agent_pb2.TelemetryBatch(
        dt_us=[n * _SPACING_US for n in range(samples)],
        columns=[
            agent_pb2.Column(quantity=name, values=[n + 0.25 for n in range(samples)])
            for name in agent_pb2.Quantity.keys()[1:9]
        ],
    )
    return batch.SerializeToString()


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


async def _send(plan: Plan) -> None:
    agents = [_Agent(plan, number) for number in range(len(plan.keys))]
    tasks = [asyncio.create_task(agent.run()) for agent in agents]
    for agent, task in zip(agents, tasks, strict=True):
        waiting = asyncio.create_task(agent.connected.wait())
        await asyncio.wait({waiting, task}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()  # it says why
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        if line.strip() == "clear":
            for agent in agents:
                agent.seconds.clear()
        seconds = sorted(second for agent in agents for second in agent.seconds)
        count = {
            "batches": sum(agent.acknowledged for agent in agents),
            "p50_seconds": seconds[len(seconds) // 2] if seconds else 0.0,
            "p99_seconds": seconds[int(len(seconds) * 0.99)] if seconds else 0.0,
        }
        print(json.dumps(count), flush=True)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What was acknowledged since the start, and how fast since ``clear``."""

    batches: int
    p50_seconds: float
    p99_seconds: float


class Target(Protocol):
    """A gateway, or what stands in for one."""

    gateway_address: str
    server_ca: Authority


class Load:
    """A load process, from outside."""

    def __init__(self, headend: Target, assets: Sequence[FieldAsset], **plan: Any) -> None:
        self._plan = Plan(
            address=headend.gateway_address,
            ca=headend.server_ca.pem.decode(),
            certificates=[asset.leaf.pem.decode() for asset in assets],
            keys=[asset.leaf.key.decode() for asset in assets],
            **plan,
        )

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.field.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=places.REPOSITORY,
        )
        self._ask(json.dumps(dataclasses.asdict(self._plan)))
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()

    def count(self, *, clear: bool = False) -> Count:
        """Return what was acknowledged so far; ``clear`` begins the latencies anew."""
        return Count(**json.loads(self._ask("clear" if clear else "count")))

    def _ask(self, line: str) -> str:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the load process ended"
        return answer


if __name__ == "__main__":
    asyncio.run(_send(Plan(**json.loads(sys.stdin.readline()))))
