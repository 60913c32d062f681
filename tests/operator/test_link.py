"""One stream to a replica, on a call that a test answers."""

import asyncio
from typing import Any

from tests.operator.making import at
from tests.waiting import until

from derops.wire.streams import EOF
from derops.wire.v1 import control_pb2
from derops_operator.gateways.desired import Desired
from derops_operator.gateways.intake import ReplicaIntake
from derops_operator.gateways.link import ReplicaLink
from derops_operator.gateways.replicas import Fleet


class Call:
    """A call whose other end says only what it is told to."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.said: asyncio.Queue[Any] = asyncio.Queue()

    async def write(self, message: Any) -> None:
        self.written.append(message)

    async def read(self) -> Any:
        return await self.said.get()

    async def code(self) -> Any:
        return "OK"

    async def details(self) -> str:
        return ""


class Listener:
    """Notes who was welcomed, and what had been written by then."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self.written_before: int | None = None

    def welcome(self, link: ReplicaLink, replica: str) -> None:
        self.written_before = len(self.call.written)

    def note_accepted(self, link: ReplicaLink) -> None:
        pass


async def test_nothing_is_written_before_the_stream_speaks_for_its_replica() -> None:
    """A snapshot ends the stream before: its end must not be heard while that still speaks."""
    call, desired, fleet = Call(), Desired(operator_start_ms=5), Fleet(at(0))
    listener = Listener(call)
    intake = ReplicaIntake(
        desired, fleet, lambda _: None, lambda _: None, lambda _: True, lambda: at(1)
    )
    link = ReplicaLink(
        "there:1", call, desired.subscribe(), asyncio.Event(), fleet, intake, listener
    )
    running = asyncio.create_task(link.run())
    for _ in range(20):
        await asyncio.sleep(0)
    assert call.written == []

    hello = control_pb2.ReplicaHello(replica="gateway-0", takes_batches=True)
    await call.said.put(control_pb2.ReplicaMessage(hello=hello))
    await until(lambda: bool(call.written))

    assert listener.written_before == 0
    await call.said.put(EOF)
    await asyncio.gather(running, return_exceptions=True)
