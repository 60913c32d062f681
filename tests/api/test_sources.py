"""Whose address a request has: that of the peer, but where a proxy is trusted."""

import ipaddress

import pytest

from derops_headend.api.sources import MOST_HOPS, Address, source_of

TRUSTED = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "said", "source"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.7"], "192.0.2.1"),
        ("10.1.1.1", [], "10.1.1.1"),
        ("10.1.1.1", ["198.51.100.7"], "198.51.100.7"),
        ("::ffff:10.1.1.1", ["198.51.100.7"], "198.51.100.7"),
        ("fd00::1", ["2001:db8::7"], "2001:db8::7"),
        ("10.1.1.1", ["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
        ("10.1.1.1", ["203.0.113.9, 198.51.100.7, 10.2.2.2"], "198.51.100.7"),
        ("10.1.1.1", ["203.0.113.9", "198.51.100.7"], "198.51.100.7"),
        ("10.1.1.1", ["198.51.100.7, junk"], "10.1.1.1"),
        ("10.1.1.1", ["198.51.100.7\n"], "198.51.100.7"),
        ("10.1.1.1", ["10.2.2.2, 10.3.3.3"], "10.1.1.1"),
        ("", ["198.51.100.7"], ""),
        ("10.1.1.1", ["fe80::1%" + "x" * 60_000], "10.1.1.1"),
        ("10.1.1.1", ["0" * 60_000 + "198.51.100.7"], "10.1.1.1"),
    ],
)
def test_only_a_trusted_proxy_is_believed(peer: str, said: list[str], source: str) -> None:
    scope = {
        "client": (peer, 1),
        "headers": [(b"x-forwarded-for", each.encode()) for each in said],
    }

    assert source_of(scope, TRUSTED) == source
    assert source_of(scope, ()) == peer


def test_a_long_way_is_not_walked(monkeypatch: pytest.MonkeyPatch) -> None:
    """R149: thousands of addresses, each of a trusted proxy, before anybody looks at the token."""
    looked: list[str] = []
    look = ipaddress.ip_address

    def note(text: str) -> Address:
        looked.append(text)
        return look(text)

    monkeypatch.setattr(ipaddress, "ip_address", note)
    said = b"198.51.100.7," + b"10.2.2.2," * 7_000 + b"10.2.2.2"
    scope = {"client": ("10.1.1.1", 1), "headers": [(b"x-forwarded-for", said)]}

    assert source_of(scope, TRUSTED) == "10.1.1.1"
    assert len(looked) == 1 + MOST_HOPS
