"""A gateway for one asset on the loopback: real TLS and gRPC, scripted answers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc.aio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from derops.wire.v1 import agent_pb2, agent_pb2_grpc

SERVER_NAME = "derops-gateway"


class Authority:
    """A CA that writes leaf certificates into folders."""

    def __init__(self, name: str) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.certificate = self._build(self.name, self.key.public_key(), ca=True)

    def _build(self, subject: x509.Name, key: Any, *, ca: bool, dns: str = "") -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(hours=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )
        if dns:
            names = x509.SubjectAlternativeName([x509.DNSName(dns)])
            builder = builder.add_extension(names, critical=False)
        return builder.sign(self.key, hashes.SHA256())

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def leaf(self, name: str) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        leaf = self._build(subject, key.public_key(), ca=False, dns=name)
        return (
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            ),
            leaf.public_bytes(serialization.Encoding.PEM),
        )

    def write_leaf(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        key, certificate = self.leaf(name)
        (folder / "tls.key").write_bytes(key)
        (folder / "tls.crt").write_bytes(certificate)


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
    credentials = grpc.ssl_server_credentials(
        [server_ca.leaf(SERVER_NAME)], agent_ca.pem, require_client_auth=True
    )
    gateway.port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    try:
        yield gateway
    finally:
        await server.stop(None)
