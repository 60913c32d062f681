"""Who gets a stream: every refusal over real mTLS."""

from collections.abc import Callable
from datetime import timedelta

import grpc
import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from tests.headend.gateway.counting import refused_streams
from tests.headend.gateway.rig import Operator, Rig, now_us
from tests.pki import CLIENT, SERVER, Authority, Leaf, uri_of

URI = x509.UniformResourceIdentifier(uri_of("battery"))
REFUSED = grpc.StatusCode.UNAUTHENTICATED


def wrong(name: str, make: Callable[[Authority], Leaf], reason: str) -> object:
    return pytest.param(make, reason, id=name)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        wrong("no EKU", lambda ca: ca.leaf([URI], usages=[]), "BadExtendedKeyUsage"),
        wrong(
            "both EKUs", lambda ca: ca.leaf([URI], usages=CLIENT + SERVER), "BadExtendedKeyUsage"
        ),
        wrong("CA:TRUE", lambda ca: ca.leaf([URI], ca=True), "CertificateOfAuthority"),
        wrong(
            "two URIs",
            lambda ca: ca.leaf([URI, x509.UniformResourceIdentifier(uri_of("other"))]),
            "BadSubjectAlternativeName",
        ),
        wrong(
            "URI and DNS",
            lambda ca: ca.leaf([URI, x509.DNSName("battery")]),
            "BadSubjectAlternativeName",
        ),
        wrong(
            "CN only",
            lambda ca: ca.leaf([], common_name="battery"),
            "BadSubjectAlternativeName",
        ),
        wrong(
            "DNS that spells the URI",
            lambda ca: ca.leaf([x509.DNSName(uri_of("battery"))]),
            "BadSubjectAlternativeName",
        ),
        wrong(
            "URI with NUL",
            lambda ca: ca.leaf([x509.UniformResourceIdentifier(uri_of("battery") + "\0.evil")]),
            "NotAnAsset",
        ),
        wrong(
            "URI with newline",
            lambda ca: ca.leaf([x509.UniformResourceIdentifier(uri_of("battery") + "\n")]),
            "NotAnAsset",
        ),
        wrong("another serial", lambda ca: ca.agent("battery"), "UnknownSerial"),
        wrong("unknown asset", lambda ca: ca.agent("nobody"), "AssetUnknown"),
    ],
)
async def test_what_tls_lets_through_is_refused_by_the_handler(
    rig: Rig, operator: Operator, make: Callable[[Authority], Leaf], reason: str
) -> None:
    before = refused_streams(reason)

    code, details = await rig.agent(make(rig.agent_ca)).refusal()

    transient = reason in {"UnknownSerial", "AssetUnknown"}
    assert code is (grpc.StatusCode.UNAVAILABLE if transient else REFUSED)
    assert details.startswith(f"{reason}: ")
    assert refused_streams(reason) == before + 1


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda rig: Authority("agent").agent("battery"), id="CA of the same name"),
        pytest.param(lambda rig: rig.server_ca.agent("battery"), id="the server's CA"),
        pytest.param(
            lambda rig: rig.agent_ca.agent("battery", ends=timedelta(minutes=-1)), id="expired"
        ),
        pytest.param(
            lambda rig: rig.agent_ca.agent("battery", begins=timedelta(minutes=30)),
            id="not yet valid",
        ),
        pytest.param(lambda rig: rig.agent_ca.agent("battery", usages=SERVER), id="server's EKU"),
        pytest.param(
            lambda rig: rig.agent_ca.agent(
                "battery", usages=[ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]
            ),
            id="any EKU",
        ),
    ],
)
async def test_what_tls_refuses_never_reaches_the_handler(
    rig: Rig, make: Callable[[Rig], Leaf]
) -> None:
    leaf = make(rig)
    await rig.operator().snapshot([rig.asset("battery", leaf)])

    code, _ = await rig.agent(leaf).refusal()

    assert code is grpc.StatusCode.UNAVAILABLE
    assert rig.log.entries == []


async def test_a_quarantined_asset_is_refused_and_the_log_says_so(rig: Rig, leaf: Leaf) -> None:
    await rig.operator().snapshot([rig.asset("battery", leaf, quarantine="CloneSuspected")])

    code, details = await rig.agent(leaf).refusal()

    assert code is REFUSED
    assert details.startswith("Quarantined: ")
    event = await rig.log.connection("Refused")
    assert (event.reason, event.serial_number) == ("Quarantined", leaf.known.serial_number)


async def test_a_quarantine_ends_the_live_stream(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    agent = rig.agent(leaf)
    await agent.connect()

    await operator.say(asset=rig.asset("battery", leaf, quarantine="Stolen"))

    assert (await agent.read_until("bye")).reason == "Quarantined"
    assert (await rig.log.connection("Disconnected")).reason == "Quarantined"


async def test_a_removed_asset_ends_its_stream(rig: Rig, leaf: Leaf, operator: Operator) -> None:
    agent = rig.agent(leaf)
    await agent.connect()

    await operator.say(asset_removed="uid-battery")

    assert (await agent.read_until("bye")).reason == "AssetRemoved"


async def test_out_of_service_waits_until_the_dispatch_is_settled(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    await operator.accepted(await operator.say(dispatch=rig.dispatch("d1")))
    agent = rig.agent(leaf)
    await agent.connect()

    await operator.say(asset=rig.asset("battery", leaf, operating_state="OutOfService"))
    await operator.say(dispatch=rig.dispatch("d1", generation=2, cancelled=True))
    assert (await agent.read_until("dispatch")).cancelled
    await operator.say(dispatch_removed="d1")

    assert (await agent.read_until("bye")).reason == "AssetOutOfService"
    code, details = await rig.agent(leaf).refusal()
    assert (code, details.split(":")[0]) == (grpc.StatusCode.UNAVAILABLE, "AssetOutOfService")


async def test_next_and_previous_certificates_are_good_until_the_grace_ends(
    rig: Rig, leaf: Leaf, operator: Operator
) -> None:
    newer = rig.agent_ca.agent("battery")
    asset = rig.asset("battery", newer)
    asset.identity.previous.CopyFrom(leaf.known)
    asset.identity.previous.accepted_until_us = now_us() + 1_500_000
    await operator.accepted(await operator.say(asset=asset))

    agent = rig.agent(leaf)
    await agent.connect()

    assert (await agent.read_until("bye")).reason == "CertificateReplaced"
    code, details = await rig.agent(leaf).refusal()
    assert (code, details.split(":")[0]) == (REFUSED, "CertificateReplaced")
    await rig.agent(newer).connect(epoch=2)


async def test_a_stream_ends_when_its_certificate_does(rig: Rig, operator: Operator) -> None:
    short = rig.agent_ca.agent("battery", ends=timedelta(seconds=3))
    await operator.accepted(await operator.say(asset=rig.asset("battery", short)))
    agent = rig.agent(short)
    await agent.connect()

    assert (await agent.read_until("bye")).reason == "CertificateExpired"


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda rig: rig.control_ca.leaf([URI]), id="an agent's name"),
        pytest.param(
            lambda rig: rig.agent_ca.leaf(
                [x509.UniformResourceIdentifier("spiffe://derops.test/operator")]
            ),
            id="the agents' CA",
        ),
    ],
)
async def test_the_control_port_admits_only_the_operator(
    rig: Rig, make: Callable[[Rig], Leaf]
) -> None:
    code, _ = await rig.operator(make(rig)).refusal()

    assert code in {REFUSED, grpc.StatusCode.UNAVAILABLE}


async def test_a_silent_peer_is_ended_before_hello(rig: Rig, leaf: Leaf) -> None:
    await rig.stop()
    rig.hello_seconds = 0.2
    await rig.start()
    await rig.operator().snapshot([rig.asset("battery", leaf)])

    code, details = await rig.agent(leaf).refusal()

    assert code is grpc.StatusCode.UNAVAILABLE
    assert details.startswith("HelloTimeout: ")
