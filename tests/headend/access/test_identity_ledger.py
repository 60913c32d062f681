"""The ledger rule and the grammar of names, without a network."""

from datetime import UTC, datetime

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from tests.pki import TRUST_DOMAIN, Authority, uri_of

from derops.errors import IdentityRefusedError
from derops.ids import AssetName
from derops.wire.v1 import dispatch_pb2
from derops_headend.access.certificates import authenticate_agent
from derops_headend.access.identity_ledger import admit

CA = Authority("agent")


def ledger(**facts: object) -> dispatch_pb2.IdentityLedger:
    known = {
        slot: dispatch_pb2.KnownCertificate(serial_number=slot, public_key_sha256="key")
        for slot in ("previous", "current", "next")
    }
    known["previous"].accepted_until_us = 100
    return dispatch_pb2.IdentityLedger(**(known | facts))  # type: ignore[arg-type]


@pytest.mark.parametrize("serial", ["previous", "current", "next"])
def test_all_three_are_good_in_their_time(serial: str) -> None:
    admit(ledger(), serial, "key", now_us=99)


@pytest.mark.parametrize(
    ("known", "serial", "key", "reason", "transient"),
    [
        (ledger(), "previous", "key", "CertificateReplaced", False),
        (ledger(), "current", "other", "PublicKeyMismatch", False),
        (ledger(), "unknown", "key", "UnknownSerial", True),
        (dispatch_pb2.IdentityLedger(), "current", "key", "UnknownSerial", True),
        (ledger(quarantine="Stolen"), "current", "key", "Quarantined", False),
        (ledger(quarantine="Stolen"), "unknown", "key", "Quarantined", False),
    ],
)
def test_the_rest_is_refused(
    known: dispatch_pb2.IdentityLedger, serial: str, key: str, reason: str, transient: bool
) -> None:
    with pytest.raises(IdentityRefusedError) as refused:
        admit(known, serial, key, now_us=100)

    assert (refused.value.reason, refused.value.transient) == (reason, transient)


def test_what_a_good_certificate_says() -> None:
    leaf = CA.agent("battery")

    agent = authenticate_agent(leaf.pem, TRUST_DOMAIN, datetime.now(UTC))

    assert agent.asset == AssetName("pilot", "battery")
    assert agent.serial_number == leaf.known.serial_number
    assert agent.public_key_sha256 == leaf.known.public_key_sha256
    not_after = leaf.certificate.not_valid_after_utc.timestamp()
    assert agent.not_after_us == int(not_after) * 1_000_000


ODD = st.one_of(
    st.text(st.characters(codec="ascii"), max_size=60),
    st.sampled_from(["\0x", "\n", "%31", "/..", "//", "/", "?q", "#f", ":443", "B", "-", "." * 90]),
)


@given(suffix=ODD)
def test_only_the_canonical_uri_is_an_asset(suffix: str) -> None:
    uri = uri_of("battery") + suffix
    leaf = CA.leaf([x509.UniformResourceIdentifier(uri)])

    try:
        agent = authenticate_agent(leaf.pem, TRUST_DOMAIN, datetime.now(UTC))
    except IdentityRefusedError:
        return
    assert agent.asset.uri(TRUST_DOMAIN) == uri


@pytest.mark.parametrize("junk", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n", b"\x30\x82\xff"])
def test_junk_is_refused(junk: bytes) -> None:
    with pytest.raises(IdentityRefusedError, match="BadCertificate"):
        authenticate_agent(junk, TRUST_DOMAIN, datetime.now(UTC))
