"""Where a request comes from. Pure."""

import ipaddress
from collections.abc import Sequence

from starlette.types import Scope

from derops_headend.api.settings import Network

MOST_HOPS, LONGEST_ADDRESS = 10, 45
"""How many addresses of a header are looked at, from its end; and how many characters of one."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def source_of(scope: Scope, trusted: Sequence[Network]) -> str:
    """Return the client's address.

    Args:
        scope: The scope of ASGI.
        trusted: Proxies. Only they are believed, each about its own client: so the client is the
            last address that is not one of theirs.
    """
    peer = (scope.get("client") or ("",))[0]
    if not _is_in(_address(peer), trusted):
        return str(peer)
    said = b",".join(v for n, v in scope["headers"] if n == b"x-forwarded-for")
    for word in reversed(said.rsplit(b",", MOST_HOPS)[-MOST_HOPS:]):
        address = _address(word.strip().decode("latin-1"))
        if address is None:
            break
        if not _is_in(address, trusted):
            return str(address)
    return str(peer)


def network_of(source: str) -> str:
    """Return the network that one client has: of IPv6 a /64, of IPv4 the address."""
    address = _address(source)
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return source


def _address(text: str) -> Address | None:
    if len(text) > LONGEST_ADDRESS or "%" in text:  # a zone is a text of any kind
        return None
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return mapped or found


def _is_in(address: Address | None, networks: Sequence[Network]) -> bool:
    return address is not None and any(address in network for network in networks)
