"""One stream to one gateway replica, from its hello until it ends."""

import asyncio
from typing import Any, Protocol

import grpc
import structlog

from derops.wire.streams import EOF
from derops.wire.v1 import control_pb2
from derops_operator import metrics
from derops_operator.gateways.desired import BACKLOG_BYTES, Subscription
from derops_operator.gateways.intake import ReplicaIntake
from derops_operator.gateways.replicas import Fleet

MAX_BATCH = 50
"""Messages to a replica in one; none comes near 64 KiB, and gRPC takes 4 MiB."""

HELLO_SECONDS = 10.0
"""How long a replica may take to say hello."""

_WORD_SECONDS = 2.0

_log = structlog.get_logger("headend")


class LinkListener(Protocol):
    """Who opened the links, and hears how they stand. No method waits."""

    def welcome(self, link: "ReplicaLink", replica: str) -> None:
        """Hear the name of a replica; from here on this link alone speaks for it.

        Raises:
            ValueError: A replica at another address has the same name.
        """

    def note_accepted(self, link: "ReplicaLink") -> None:
        """Hear that the replica has stored a version."""


class ReplicaLink:
    """One stream to one replica. One task writes, one reads; the first to end ends both."""

    def __init__(
        self,
        address: str,
        call: Any,
        subscription: Subscription,
        taken: asyncio.Event,
        fleet: Fleet,
        intake: ReplicaIntake,
        listener: LinkListener,
    ) -> None:
        """Make it; ``run`` serves the stream.

        Args:
            address: Of the replica.
            call: The stream.
            subscription: What is written to it.
            taken: Set once the replica has stored our snapshot.
            fleet: Told what was written.
            intake: Given what the replica says.
            listener: Told how the link stands.
        """
        self.address = address
        self.subscription = subscription
        self.replica: str | None = None
        """The replica that this link speaks for; None = it has not said, or another link does."""

        self._call = call
        self._taken = taken
        self._fleet = fleet
        self._intake = intake
        self._listener = listener
        self._stopping, self._welcomed = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Write and read until either ends.

        Raises:
            ValueError: The replica breaks the protocol, is too slow, or ends with an error.
            grpc.RpcError: The stream broke.
        """
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read())
        stopping = asyncio.create_task(self._stopping.wait())
        overrun = asyncio.create_task(self._end_where_too_slow())  # the writer may be stuck
        tasks = (reader, writer, overrun, stopping)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if writer.done() and writer.exception() is not None:
                await asyncio.wait({reader}, timeout=_WORD_SECONDS)  # it hears why
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in (reader, writer, overrun):
            if not task.cancelled():
                task.result()

    def stop(self) -> None:
        """End the stream."""
        self._stopping.set()

    def retire(self) -> None:
        """End: a link with a newer key speaks for the replica from here on."""
        self.replica = None
        self.stop()

    async def _write(self) -> None:
        # A snapshot ends the stream before this one: that has to be retired by then.
        await self._welcomed.wait()
        while messages := await self.subscription.get():
            if self.replica is not None:
                self._fleet.note_sent(self.replica, messages[-1].version)
            message = messages[0]
            if len(messages) > 1:
                batch = control_pb2.OperatorBatch(messages=messages)
                message = control_pb2.OperatorMessage(batch=batch)
            await self._call.write(message)

    async def _end_where_too_slow(self) -> None:
        await self.subscription.overrun.wait()
        metrics.BACKLOG_OVERRUNS.inc()
        raise ValueError(f"more than {BACKLOG_BYTES} bytes wait to be read by it")

    async def _read(self) -> None:
        async with asyncio.timeout(HELLO_SECONDS):
            first = await self._call.read()
        if first is EOF:
            raise ValueError(f"{await self._call.code()}: {await self._call.details()}")
        if first.WhichOneof("kind") != "hello":
            raise ValueError("the replica did not say hello first")
        self._take_hello(first.hello)
        while (message := await self._call.read()) is not EOF:
            self._take(message)
        code = await self._call.code()
        if code is not grpc.StatusCode.OK:
            raise ValueError(f"{code.name}: {await self._call.details()}")

    def _take_hello(self, hello: control_pb2.ReplicaHello) -> None:
        self._listener.welcome(self, hello.replica)
        self.replica = hello.replica
        if hello.takes_batches:
            self.subscription.most = MAX_BATCH
        self._intake.add_replica(hello, self.subscription)
        self._welcomed.set()
        _log.info("gateway.connected", address=self.address, replica=hello.replica)

    def _take(self, message: control_pb2.ReplicaMessage) -> None:
        kind = message.WhichOneof("kind")
        if self.replica is None or kind is None:
            return
        if kind == "batch":
            for each in message.batch.messages:
                self._take(each)
            return
        self._intake.take(self.replica, message)
        if kind == "accepted_version":
            self._taken.set()
            self.subscription.stored = True
            self._listener.note_accepted(self)
