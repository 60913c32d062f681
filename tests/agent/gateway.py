"""A gateway for one asset on the loopback: real TLS and gRPC, scripted answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio
from tests.pki import Authority

from derops.wire.v1 import agent_pb2, agent_pb2_grpc

SERVER_NAME = "derops-gateway"


class Stream:
    """One stream at the gateway: what came, and a way to answer."""

    def __init__(self, context: Any) -> None:
        self.context = context
        self.received: list[agent_pb2.AgentMessage] = []
        self.ended = asyncio.Event()
        self._arrived = asyncio.Condition()

    async def send(self, **kind: Any) -> None:
        await self.context.write(agent_pb2.GatewayMessage(**kind))

    async def welcome(self, heartbeat_seconds: int = 60, now_us: int = 0) -> None:
        await self.send(
            welcome=agent_pb2.Welcome(
                now_us=now_us, heartbeat_seconds=heartbeat_seconds, replica="test"
            )
        )

    async def snapshot(self, asset: Any, *orders: Any, **revision_facts: int) -> None:
        facts = {"operator_start_ms": 1, "counter": 1} | revision_facts
        revision = agent_pb2.Revision(**facts)
        await self.send(sync_begin=agent_pb2.SyncBegin(revision=revision))
        await self.send(asset=asset)
        for order in orders:
            await self.send(dispatch=order)
        await self.send(sync_end=agent_pb2.SyncEnd(revision=revision, count=len(orders)))

    async def take(self, message: agent_pb2.AgentMessage) -> None:
        async with self._arrived:
            self.received.append(message)
            self._arrived.notify_all()

    async def until(
        self, kind: str, match: Callable[[Any], bool] = lambda _: True, seconds: float = 30
    ) -> Any:
        """Return the first message of a kind that matches, waiting for it."""

        def found() -> Any:
            for message in self.received:
                if message.WhichOneof("kind") == kind and match(getattr(message, kind)):
                    return getattr(message, kind)
            return None

        async with asyncio.timeout(seconds), self._arrived:
            await self._arrived.wait_for(lambda: found() is not None)
        return found()


class Gateway(agent_pb2_grpc.AgentLinkServicer):
    """Hands each stream to the test once its Hello is there."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[Stream] = asyncio.Queue()
        self.port = 0

    async def Connect(self, request_iterator: Any, context: Any) -> None:  # noqa: N802
        stream = Stream(context)
        try:
            async for message in request_iterator:
                await stream.take(message)
                if message.WhichOneof("kind") == "hello":
                    self.streams.put_nowait(stream)
        finally:
            stream.ended.set()

    async def next_stream(self, seconds: float = 30) -> Stream:
        return await asyncio.wait_for(self.streams.get(), seconds)


@asynccontextmanager
async def serve(server_ca: Authority, agent_ca: Authority) -> AsyncIterator[Gateway]:
    gateway = Gateway()
    server = grpc.aio.server()
    register: Any = agent_pb2_grpc.add_AgentLinkServicer_to_server  # generated without types
    register(gateway, server)
    leaf = server_ca.server([SERVER_NAME])
    credentials = grpc.ssl_server_credentials(
        [(leaf.key, leaf.pem)], agent_ca.pem, require_client_auth=True
    )
    gateway.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield gateway
    finally:
        await server.stop(None)
