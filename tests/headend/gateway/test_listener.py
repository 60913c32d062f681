"""Both ports take up renewed certificates and other authorities while streams go on."""

import asyncio
import socket
import ssl
from datetime import timedelta

import grpc
import pytest
import structlog
from cryptography import x509
from prometheus_client import REGISTRY
from tests.headend.gateway.rig import Agent, Rig
from tests.pki import SERVER, Authority
from tests.stack.mounts import write_mount

from derops_headend.gateway import listener
from derops_headend.gateway.listener import MAX_DRAINING
from derops_headend.gateway.server import Gateway


def gateway(rig: Rig) -> Gateway:
    assert rig.gateway is not None
    return rig.gateway


async def take_up(rig: Rig) -> None:
    """Have both ports look at their files, however soon after the last time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listener, "EXCHANGE_SECONDS", 0.0)
        for port in gateway(rig).ports:
            await port.look()


def shown(port: int) -> x509.Certificate:
    """Return the certificate that a port shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        socket.create_connection(("127.0.0.1", port)) as raw,
        context.wrap_socket(raw) as secure,
    ):
        der = secure.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der)


async def connect(rig: Rig, agent_ca: Authority | None = None) -> Agent:
    """Connect the agent of the battery, by a certificate of one authority."""
    leaf = (agent_ca or rig.agent_ca).agent("battery")
    operator = rig.operator()
    await operator.snapshot([rig.asset("battery", leaf)])
    await operator.close()
    agent = rig.agent(leaf)
    connect.epoch += 1  # type: ignore[attr-defined]
    await agent.connect(epoch=connect.epoch)  # type: ignore[attr-defined]
    return agent


connect.epoch = 0  # type: ignore[attr-defined]


async def lives(agent: Agent, sequence: int) -> None:
    """Have a stream store telemetry."""
    await agent.telemetry(sequence)
    while (await agent.read_until("credit")).acknowledged_through < sequence:
        pass


async def test_renewed_certificates_are_shown_and_streams_go_on(rig: Rig) -> None:
    agent = await connect(rig)
    ports = [each.number for each in gateway(rig).ports]
    before = [await asyncio.to_thread(shown, port) for port in ports]

    rig.renew_ports()
    await take_up(rig)

    after = [await asyncio.to_thread(shown, port) for port in ports]
    assert {each.serial_number for each in before}.isdisjoint(each.serial_number for each in after)
    assert [each.number for each in gateway(rig).ports] == ports
    await lives(agent, 1)


async def test_without_a_change_nothing_is_exchanged(rig: Rig) -> None:
    with structlog.testing.capture_logs() as logs:
        await take_up(rig)
        assert logs == []
        rig.renew_ports()
        await take_up(rig)

    exchanged = [each["port"] for each in logs if each["event"] == "port.certificate_renewed"]
    assert exchanged == ["agent", "control"]


async def test_an_agent_of_a_new_authority_is_heard_and_one_before_goes_on(rig: Rig) -> None:
    old = await connect(rig)
    renewed = Authority("agent-2")
    stranger = rig.agent(renewed.agent("battery"))
    with pytest.raises(grpc.aio.AioRpcError):
        await stranger.connect(epoch=99)

    old_ca = rig.agent_ca
    rig.write_port("agent", rig.server_ca, "derops-gateway", renewed.pem + old_ca.pem)
    await take_up(rig)

    await lives(old, 1)
    await lives(await connect(rig, old_ca), 1)
    await lives(await connect(rig, renewed), 1)


async def test_an_authority_that_was_dropped_is_heard_no_more(rig: Rig) -> None:
    dropped = rig.agent_ca
    rig.agent_ca = Authority("agent-2")
    rig.renew_ports()
    await take_up(rig)

    with pytest.raises(grpc.aio.AioRpcError):
        await connect(rig, dropped)


async def test_the_operator_of_a_new_control_authority_is_heard(rig: Rig) -> None:
    rig.control_ca = Authority("control-2")
    rig.renew_operator()
    rig.renew_ports()

    await take_up(rig)

    await rig.operator().snapshot()


@pytest.mark.parametrize("wrong", ["tls.key", "tls.crt", "ca.crt", "another key", "nothing"])
async def test_files_that_are_wrong_are_told_and_what_was_read_is_served(
    rig: Rig, wrong: str
) -> None:
    files = rig.files_of("agent")
    content = {each.name: each.read_bytes() for each in (files.directory / "..data").iterdir()}
    if wrong == "another key":
        content["tls.key"] = rig.server_ca.agent("other").key
    elif wrong == "nothing":
        content["tls.crt"] = b""
    else:
        content[wrong] = b"garbage"
    write_mount(files.directory, content)

    await take_up(rig)

    _, text = rig.readiness.report()
    assert "degraded agent port certificate: what was read before is served" in text
    assert "DEROPS_GATEWAY_AGENT_TLS_DIRECTORY" in text
    await lives(await connect(rig), 1)
    rig.renew_ports()
    await take_up(rig)
    assert "agent port" not in rig.readiness.report()[1]


def shows_until(rig: Rig, port: str, ends: timedelta) -> None:
    """Have a port's files hold a certificate that ends then."""
    files = rig.files_of(port)
    ca = rig.server_ca if port == "agent" else rig.control_ca
    leaf = ca.leaf([x509.DNSName("derops-gateway")], usages=SERVER, ends=ends)
    content = {each.name: each.read_bytes() for each in (files.directory / "..data").iterdir()}
    write_mount(files.directory, content | {"tls.key": leaf.key, "tls.crt": leaf.pem})


@pytest.mark.parametrize(("port", "ready"), [("agent", False), ("control", True)])
async def test_an_expired_certificate_is_never_served_silently(
    rig: Rig, port: str, ready: bool
) -> None:
    await rig.operator().snapshot()
    assert rig.readiness.report() == (True, "ok")

    shows_until(rig, port, timedelta(minutes=-5))
    await take_up(rig)

    told = rig.readiness.report()
    assert told[0] is ready
    assert f"{port} port certificate's end: over since" in told[1]
    shows_until(rig, port, timedelta(hours=1))
    await take_up(rig)
    assert rig.readiness.report() == (True, "ok")


async def test_when_a_certificate_ends_is_a_metric(rig: Rig) -> None:
    shows_until(rig, "agent", timedelta(minutes=30))
    await take_up(rig)

    found = REGISTRY.get_sample_value(
        "derops_gateway_certificate_expiry_timestamp_seconds", {"port": "agent"}
    )
    certificate = await asyncio.to_thread(shown, gateway(rig).agent_port)
    assert found == certificate.not_valid_after_utc.timestamp()


async def test_streams_of_ever_older_certificates_are_ended_beyond_a_bound(rig: Rig) -> None:
    leaves = {f"a{number}": rig.agent_ca.agent(f"a{number}") for number in range(MAX_DRAINING + 1)}
    await rig.operator().snapshot([rig.asset(name, leaf) for name, leaf in leaves.items()])
    agents = []
    for leaf in leaves.values():
        agents.append(rig.agent(leaf))
        await agents[-1].connect()
        rig.renew_ports()
        await take_up(rig)

    with pytest.raises(grpc.aio.AioRpcError):
        await agents[0].read_until("bye")
    for agent in agents[1:]:
        await lives(agent, 1)


async def test_an_exchange_that_comes_too_soon_waits(rig: Rig) -> None:
    agents = gateway(rig).ports[0]
    await take_up(rig)
    rig.renew_ports()
    await agents.look()
    first = await asyncio.to_thread(shown, agents.number)

    rig.renew_ports()
    await agents.look()

    assert await asyncio.to_thread(shown, agents.number) == first
    await take_up(rig)
    assert await asyncio.to_thread(shown, agents.number) != first


@pytest.mark.parametrize("name", ["derops-agent-trust", "derops-gateway"])
async def test_the_certificate_that_tells_the_agent_ca_is_no_agents(rig: Rig, name: str) -> None:
    leaf = rig.agent_ca.leaf([x509.DNSName(name)], usages=[])
    operator = rig.operator()
    await operator.snapshot([rig.asset("battery", leaf)])

    agent = rig.agent(leaf)

    status, details = await agent.refusal()
    assert status is grpc.StatusCode.UNAUTHENTICATED
    assert details.startswith("BadSubjectAlternativeName")
