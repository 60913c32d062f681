"""The bare transport: a grpc.aio server over mTLS that answers each message.

``python -m tests.bench.echo DIRECTORY`` serves with the keys in DIRECTORY and prints its port. Its
answers are credit messages, so that ``tests.field.load`` sends to it as to a gateway.
"""

import asyncio
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from tests.field.headend import FieldHeadend
from tests.headend.gateway.pki import SERVER

from derops.wire.v1 import agent_pb2

_WINDOW = 16


@cache
def _credit(number: int) -> bytes:
    credit = agent_pb2.TelemetryCredit(acknowledged_through=number, send_through=number + _WINDOW)
    return agent_pb2.GatewayMessage(credit=credit).SerializeToString()


async def _connect(_: Any, context: Any) -> None:
    number = 0
    while await context.read() is not vars(grpc.aio)["EOF"]:
        await context.write(_credit(number))
        number += 1


async def _serve(directory: Path) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.stream_stream_rpc_method_handler(_connect)  # bytes in, bytes out
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("derops.wire.v1.AgentLink", {"Connect": handler}),)
    )
    credentials = grpc.ssl_server_credentials(
        [((directory / "tls.key").read_bytes(), (directory / "tls.crt").read_bytes())],
        (directory / "clients.crt").read_bytes(),
        require_client_auth=True,
    )
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    print(port, flush=True)
    await server.wait_for_termination()


class Echo:
    """The echo server as a process; stands in for the gateway of ``headend``."""

    def __init__(self, headend: FieldHeadend) -> None:
        self.server_ca = headend.server_ca
        directory = headend.directory / "echo"
        directory.mkdir(exist_ok=True)
        leaf = headend.server_ca.leaf([x509.DNSName("derops-gateway")], usages=SERVER)
        (directory / "tls.crt").write_bytes(leaf.pem)
        (directory / "tls.key").write_bytes(leaf.key)
        (directory / "clients.crt").write_bytes(headend.agent_ca.pem)
        self._directory = directory

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.echo", str(self._directory)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.gateway_address = f"127.0.0.1:{self._process.stdout.readline().strip()}"
        self.pid = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
