"""Attacks of a peer without a certificate of ours, on both ports of the gateway.

Wrong certificates of our own authorities are in tests/headend/gateway/test_identity.py, and what a
peer can hold open or send in test_limits.py.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from tests.headend.gateway.rig import Rig
from tests.pki import TRUST_DOMAIN, Authority, Leaf, uri_of

from derops.wire.v1 import agent_pb2, agent_pb2_grpc, control_pb2, control_pb2_grpc

PATIENCE = 20.0
OPERATOR = f"spiffe://{TRUST_DOMAIN}/operator"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Rig]:
    """Return a gateway that serves one asset, ``battery``."""
    rig = Rig(tmp_path)
    await rig.start()
    leaf = rig.agent_ca.leaf([x509.UniformResourceIdentifier(uri_of("battery"))])
    await rig.operator().snapshot([rig.asset("battery", leaf)])
    yield rig
    await rig.stop()


async def first_answer(rig: Rig, port: str, credentials: grpc.ChannelCredentials | None) -> object:
    """Speak first, as an agent or an operator does; return the answer."""
    assert rig.gateway is not None
    agent = port == "agent"
    number = rig.gateway.agent_port if agent else rig.gateway.control_port
    name = "derops-gateway" if agent else "derops-gateway-control"
    options = [("grpc.ssl_target_name_override", name), ("grpc.use_local_subchannel_pool", 1)]
    target = f"127.0.0.1:{number}"
    channel = (
        grpc.aio.secure_channel(target, credentials, options)
        if credentials
        else grpc.aio.insecure_channel(target)
    )
    async with channel, asyncio.timeout(PATIENCE):
        if agent:
            call = agent_pb2_grpc.AgentLinkStub(channel).Connect()  # type: ignore[no-untyped-call]
            hello = agent_pb2.Hello(
                protocol=1, epoch=1, instance_id="i", ledger_id="l", outbox_id="o", first_sequence=1
            )
            await call.write(agent_pb2.AgentMessage(hello=hello))
        else:
            call = control_pb2_grpc.ControlStub(channel).Sync()  # type: ignore[no-untyped-call]
            begin = control_pb2.SnapshotBegin(operator_start_ms=1000)
            await call.write(control_pb2.OperatorMessage(version=1, snapshot_begin=begin))
        answer: object = await call.read()
        return answer


def of(rig: Rig, port: str) -> tuple[bytes, Authority, str]:
    """Return the CA that a client of a port trusts, the CA of its clients, and a good name."""
    if port == "agent":
        return rig.server_ca.pem, rig.agent_ca, uri_of("battery")
    return rig.control_ca.pem, rig.control_ca, OPERATOR


def credentials(ca: bytes, leaf: Leaf | None) -> grpc.ChannelCredentials:
    if leaf is None:
        return grpc.ssl_channel_credentials(ca)
    return grpc.ssl_channel_credentials(ca, leaf.key, leaf.pem)


@pytest.mark.parametrize("port", ["agent", "control"])
async def test_nobody_without_a_certificate_is_heard(gateway: Rig, port: str) -> None:
    """P1: no certificate at all."""
    ca, _, _ = of(gateway, port)

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await first_answer(gateway, port, credentials(ca, None))

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE  # TLS: nothing was read


@pytest.mark.parametrize("port", ["agent", "control"])
async def test_nobody_without_tls_is_heard(gateway: Rig, port: str) -> None:
    """P2: plain HTTP/2."""
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await first_answer(gateway, port, None)

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("port", ["agent", "control"])
async def test_the_name_alone_opens_nothing(gateway: Rig, port: str) -> None:
    """P3: the right name, signed by an authority of one's own that bears the right name."""
    ca, genuine, name = of(gateway, port)
    forged = Authority("agent" if genuine is gateway.agent_ca else "control")
    leaf = forged.leaf([x509.UniformResourceIdentifier(name)])

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await first_answer(gateway, port, credentials(ca, leaf))

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("port", ["agent", "control"])
async def test_the_other_ports_authority_opens_nothing(gateway: Rig, port: str) -> None:
    """P4: a certificate of ours that is for the other port."""
    ca, genuine, name = of(gateway, port)
    other = gateway.control_ca if genuine is gateway.agent_ca else gateway.agent_ca
    leaf = other.leaf([x509.UniformResourceIdentifier(name)])

    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await first_answer(gateway, port, credentials(ca, leaf))

    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
