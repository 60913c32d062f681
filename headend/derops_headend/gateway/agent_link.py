"""AgentLink: the port that agents dial. Every stream is authenticated by itself.

TLS does not decide who a peer is: an old connection may carry new streams long after its
certificate expired. So the bytes of the certificate are checked again for each stream.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import NoReturn

import grpc
import structlog
from google.protobuf.message import DecodeError

from derops.errors import IdentityRefusedError
from derops.ids import AssetName
from derops.log_fields import asset_fields
from derops.schedules import SECOND_US
from derops.wire.streams import EOF
from derops.wire.v1 import agent_pb2, agent_pb2_grpc
from derops_headend.access.certificates import AgentCertificate, authenticate_agent
from derops_headend.fleet.sessions import MAX_EPOCH, CloneSuspectedError, OutOfOrderError
from derops_headend.fleet.telemetry import MAX_SEQUENCE
from derops_headend.gateway import metrics
from derops_headend.gateway.agent_stream import AgentStream
from derops_headend.gateway.calls import Context, peer_certificate
from derops_headend.gateway.exchange import Exchange, NotReadyError
from derops_headend.gateway.stream_parts import StreamParts

HELLO_SECONDS = 10.0
PROTOCOL = 1
_MAX_ID = 128
_MAX_MODES = 16
MAX_OPENING = 8
"""The most streams of one identity that have not said Hello yet: each may hold a window of bytes.
"""


class AgentLink(agent_pb2_grpc.AgentLinkServicer):
    """Admits streams and serves them."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        trust_domain: str,
        heartbeat_seconds: int,
        monotonic_us: Callable[[], int],
        hello_seconds: float = HELLO_SECONDS,
    ) -> None:
        self._exchange, self._parts = exchange, stream_parts_of(exchange)
        self._trust_domain = trust_domain
        self._heartbeat_seconds = heartbeat_seconds
        self._monotonic_us = monotonic_us
        self._hello_seconds = hello_seconds
        self._opening: dict[AssetName, dict[asyncio.Timeout, None]] = {}
        self._log = structlog.get_logger("agent")

    async def Connect(  # noqa: N802  # gRPC's name
        self,
        request_iterator: AsyncIterator[agent_pb2.AgentMessage],
        context: Context,
    ) -> None:
        """Serve one agent."""
        # Admitted in a call of its own: else the Hello would stay in memory with the stream.
        await (await self._admit(context)).serve()

    async def _admit(self, context: Context) -> AgentStream:
        """Return the stream of an agent, the live one of its asset, or refuse it."""
        opened_us = self._exchange.now_us()
        certificate = await self._authenticate(context)
        hello = await self._read_hello(context, certificate)
        try:
            asset = self._exchange.admit(certificate)
        except (IdentityRefusedError, NotReadyError) as error:
            await self._refuse(context, error, certificate)
        stream = AgentStream(
            context=context,
            parts=self._parts,
            certificate=certificate,
            asset=asset,
            hello=hello,
            opened_us=opened_us,
            heartbeat_seconds=self._heartbeat_seconds,
            monotonic_us=self._monotonic_us,
        )
        try:
            self._exchange.open(stream)
        except OutOfOrderError as error:
            refusal = IdentityRefusedError(error.reason, str(error), transient=True)
            await self._refuse(context, refusal, certificate)
        except CloneSuspectedError as error:
            clone = IdentityRefusedError("CloneSuspected", str(error))
            await self._refuse(context, clone, certificate)
        return stream

    @contextmanager
    def _one_more(self, asset: AssetName, bound: asyncio.Timeout) -> Iterator[None]:
        """Have a stream wait for its Hello; if too many wait, end the one that waited longest.

        A genuine agent says Hello at once: idle streams of a thief must not keep it out.
        """
        opening = self._opening.setdefault(asset, {})
        opening[bound] = None
        if len(opening) > MAX_OPENING:
            oldest = next(iter(opening))
            del opening[oldest]
            if not oldest.expired():
                oldest.reschedule(0)
        try:
            yield
        finally:
            opening.pop(bound, None)
            if not opening and self._opening.get(asset) is opening:
                del self._opening[asset]

    async def _authenticate(self, context: Context) -> AgentCertificate:
        """Return what the certificate says, or refuse the stream before anything is read."""
        certificate: AgentCertificate | None = None
        try:
            certificate = authenticate_agent(
                peer_certificate(context), self._trust_domain, self._now()
            )
            self._exchange.admit(certificate)
        except (IdentityRefusedError, NotReadyError) as error:
            await self._refuse(context, error, certificate)
        return certificate

    async def _read_hello(self, context: Context, certificate: AgentCertificate) -> agent_pb2.Hello:
        ends = asyncio.get_running_loop().time() + self._hello_seconds
        try:
            async with asyncio.timeout_at(ends) as bound:
                with self._one_more(certificate.asset, bound):
                    message = await context.read()
        except TimeoutError:
            error = IdentityRefusedError(
                "HelloTimeout", f"no Hello within {self._hello_seconds:g} s", transient=True
            )
            if bound.when() != ends:
                error = IdentityRefusedError(
                    "TooManyStreams",
                    f"{MAX_OPENING} newer streams of {certificate.asset} wait to say Hello",
                    transient=True,
                )
            await self._refuse(context, error, certificate)
        except DecodeError:
            error = IdentityRefusedError(
                "BadMessage", "the first bytes are no message of the protocol"
            )
            await self._refuse(context, error, certificate)
        if message is EOF or message.WhichOneof("kind") != "hello":
            error = IdentityRefusedError("ProtocolViolation", "the first message is not Hello")
            await self._refuse(context, error, certificate)
        problem = _problem_of(message.hello)
        if problem:
            error = IdentityRefusedError("BadHello", problem)
            await self._refuse(context, error, certificate)
        hello: agent_pb2.Hello = message.hello
        return hello

    async def _refuse(
        self,
        context: Context,
        error: IdentityRefusedError | NotReadyError,
        certificate: AgentCertificate | None,
    ) -> NoReturn:
        """Count, log and record a refusal, then end the call with its reason."""
        transient = isinstance(error, NotReadyError) or error.transient
        reason = "NotReady" if isinstance(error, NotReadyError) else error.reason
        message = str(error) if isinstance(error, NotReadyError) else error.message
        metrics.REFUSED_STREAMS.labels(reason).inc()
        asset = certificate.asset if certificate is not None else None
        self._log.warning(
            "agent.refused",
            reason=reason,
            why=message,
            peer=context.peer(),
            **(asset_fields(asset.namespace, asset.name) if asset is not None else {}),
        )
        if certificate is not None:
            self._exchange.note_refusal(certificate, context.peer(), reason, message)
        code = grpc.StatusCode.UNAVAILABLE if transient else grpc.StatusCode.UNAUTHENTICATED
        await context.abort(code, f"{reason}: {message}")
        raise AssertionError("abort returned")

    def _now(self) -> datetime:
        return datetime.fromtimestamp(self._exchange.now_us() / SECOND_US, UTC)


def stream_parts_of(exchange: Exchange) -> StreamParts:
    """Return the parts of a gateway that its streams work with."""
    return StreamParts(
        replica=exchange.replica,
        now_us=exchange.now_us,
        desired=exchange.desired,
        deliveries=exchange.deliveries,
        reports=exchange.reports,
        journal=exchange.journal,
        admission=exchange.admission,
        operator=exchange.operator,
        unread=exchange.unread,
        on_end=exchange.close,
    )


def _problem_of(hello: agent_pb2.Hello) -> str:
    if hello.protocol != PROTOCOL:
        return (
            f"protocol {hello.protocol} is not supported, only {PROTOCOL}: change agent or gateway"
        )
    if not 0 < hello.epoch <= MAX_EPOCH:
        return f"epoch {hello.epoch} is not between 1 and {MAX_EPOCH}"
    if not 0 < hello.first_sequence < MAX_SEQUENCE:
        return f"first_sequence {hello.first_sequence} is not between 1 and {MAX_SEQUENCE}"
    for field in ("instance_id", "ledger_id", "outbox_id"):
        if not 0 < len(getattr(hello, field)) <= _MAX_ID:
            return f"{field} must have 1 to {_MAX_ID} characters"
    capability = hello.capability
    texts = [*capability.modes, capability.driver, capability.firmware, hello.software_version]
    if len(capability.modes) > _MAX_MODES:
        return f"capability has {len(capability.modes)} modes; up to {_MAX_MODES} are allowed"
    longest = max(map(len, texts))
    if longest > _MAX_ID:
        return (
            f"a text of capability or version has {longest} characters; up to {_MAX_ID} are allowed"
        )
    return ""
