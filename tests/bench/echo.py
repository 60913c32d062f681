"""The bare transport: a grpc.aio server over mTLS that answers each message.

``python -m tests.bench.echo DIRECTORY`` serves with the keys in DIRECTORY and prints its port. Its
answers are credit messages, so that ``tests.field.load`` sends to it as to a gateway. For each line
on stdin it writes one dispatch to every stream, and prints the seconds until all have answered.
"""

import asyncio
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography import x509
from tests.field.headend import FieldHeadend
from tests.pki import SERVER

from derops.wire.v1 import agent_pb2, dispatch_pb2

_WINDOW = 16


@cache
def _credit(number: int) -> bytes:
    credit = agent_pb2.TelemetryCredit(acknowledged_through=number, send_through=number + _WINDOW)
    return agent_pb2.GatewayMessage(credit=credit).SerializeToString()


def dispatch_of(asset_uid: str, uid: str = "bench") -> dispatch_pb2.Dispatch:
    """Return a dispatch of an asset for ten minutes from now."""
    now_us = time.time_ns() // 1000
    return dispatch_pb2.Dispatch(
        uid=uid,
        asset_uid=asset_uid,
        generation=1,
        setpoint=dispatch_pb2.Setpoint(mode="ActivePower", watts=1000),
        start_us=now_us + 600_000_000,
        duration_seconds=60,
        start_deadline_seconds=60,
        late_policy="KeepEnd",
        primacy=100,
        verify="Report",
        created_us=now_us,
    )


class _Echo:
    def __init__(self) -> None:
        self._streams: dict[Any, None] = {}
        self._unanswered = 0
        self._answered = asyncio.Event()

    async def connect(self, _: Any, context: Any) -> None:
        self._streams[context] = None
        number = 0
        while await context.read() is not vars(grpc.aio)["EOF"]:
            if self._unanswered:
                self._unanswered -= 1
                if not self._unanswered:
                    self._answered.set()
                continue
            await context.write(_credit(number))
            number += 1

    async def fan_out(self, message: bytes) -> float:
        begun = time.perf_counter()
        self._unanswered = len(self._streams)
        self._answered.clear()
        for stream in self._streams:
            await stream.write(message)
        await self._answered.wait()
        return time.perf_counter() - begun


async def _serve(directory: Path) -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    echo = _Echo()
    handler = grpc.stream_stream_rpc_method_handler(echo.connect)  # bytes in, bytes out
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
    message = agent_pb2.GatewayMessage(dispatch=dispatch_of("bare")).SerializeToString()
    while await asyncio.to_thread(sys.stdin.readline):
        print(await echo.fan_out(message), flush=True)


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
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.gateway_address = f"127.0.0.1:{self._read()}"
        self.pid = self._process.pid
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def fan_out(self) -> float:
        """Write a dispatch to every stream; return the seconds until all have answered."""
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1])))
