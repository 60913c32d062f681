"""Where the gateway replicas are: the names in the settings, looked up."""

import asyncio
import socket


async def resolve_addresses(targets: tuple[str, ...]) -> tuple[set[str], dict[str, str]]:
    """Return the addresses of all targets, as gRPC targets, and why there is none of a target."""
    loop = asyncio.get_running_loop()
    addresses: set[str] = set()
    unresolved: dict[str, str] = {}
    for target in targets:
        host, _, port = target.rpartition(":")
        try:
            found = await loop.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError as error:
            unresolved[target] = str(error)
            continue
        addresses |= _one_family([(each[0], str(each[4][0])) for each in found], port)
    return addresses, unresolved


def _one_family(found: list[tuple[int, str]], port: str) -> set[str]:
    """Return gRPC targets; on a dual-stack name only IPv4, or each replica would count twice."""
    four = {f"ipv4:{ip}:{port}" for family, ip in found if family == socket.AF_INET}
    return four or {f"ipv6:[{ip}]:{port}" for _, ip in found}
