"""The port: uvicorn in this process, TLS from files that may change, and clients held to a pace.

uvicorn itself waits for a client for ever: for the end of a head, for the reading of an answer. And
it takes requests that are sent before the answers to those before, as many as come.
"""

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog
import uvicorn
from cryptography import x509
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from derops.errors import SettingError
from derops.observability import Readiness
from derops_headend.api import metrics

HEAD_SECONDS = 10.0
"""How long the head of a request may take; and how long a connection may wait for its first."""

READ_SECONDS = 30.0
"""How long a client may take to read what fills all buffers."""

CLOSE_SECONDS, HANDSHAKE_SECONDS, KEEP_ALIVE_SECONDS, STOP_SECONDS = 5.0, 5.0, 15, 3
"""How long an end, a beginning, and the time between two requests may take; and our own end."""

MOST_CONNECTIONS = 1_000
"""Beyond, the one that is idle for longest goes; with none idle, nobody comes in."""

MOST_PIPELINED = 8
"""Requests of a connection that wait for the answer to one before."""

MOST_HEAD_BYTES = 65_536
"""Of one request's head, before it is even looked at."""

LOOK_SECONDS, BACKLOG = 5.0, 256
_PART = "certificate"


class GuardedProtocol(HttpToolsProtocol):
    """A connection that ends where its client is too slow, or sends too much."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.head_since: float | None = None
        self._head_bytes = 0
        self._stuck_since: float | None = None
        self._closing_since: float | None = None
        self._is_ended = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, if there is a place."""
        super().connection_made(transport)
        self.head_since = time.monotonic()
        if len(self.connections) > MOST_CONNECTIONS:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        """Take what came; a head may be only so long."""
        if self.head_since is None and self._is_between_requests():
            self.head_since, self._head_bytes = time.monotonic(), 0
        if self.head_since is not None:
            self._head_bytes += len(data)
        super().data_received(data)
        if self.head_since is not None and self._head_bytes > MOST_HEAD_BYTES:
            self.end("head too long")

    def on_headers_complete(self) -> None:
        """Take the head of a request."""
        self.head_since, self._head_bytes = None, 0
        super().on_headers_complete()
        if len(self.pipeline) > MOST_PIPELINED:
            self.end("pipelined")

    def pause_writing(self) -> None:
        """Note that the client does not read."""
        self._stuck_since = time.monotonic()
        super().pause_writing()

    def resume_writing(self) -> None:
        """Note that the client reads on."""
        self._stuck_since = None
        super().resume_writing()

    def look(self, now_seconds: float) -> None:
        """End the connection where something takes too long."""
        if self.transport.is_closing() and self._closing_since is None:
            self._closing_since = now_seconds
        waits = (
            ("slow head", self.head_since, HEAD_SECONDS),
            ("slow reader", self._stuck_since, READ_SECONDS),
            ("slow end", self._closing_since, CLOSE_SECONDS),
        )
        for reason, since, most in waits:
            if since is not None and now_seconds - since > most:
                self.end(reason)
                return

    def end(self, reason: str) -> None:
        """End the connection, whatever the client has not got yet."""
        if self._is_ended:
            return
        self._is_ended = True
        metrics.CONNECTIONS_CLOSED.labels(reason=reason).inc()
        self.transport.abort()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def _is_between_requests(self) -> bool:
        return self.cycle is not None and not self.cycle.more_body

    def _make_room(self) -> None:
        others: list[Any] = [each for each in self.connections if each is not self]
        idle = [each for each in others if each.is_idle]
        oldest = min(idle, key=lambda each: each.head_since or 0.0, default=self)
        self.connections.discard(oldest)
        oldest.end("no room")


class Server(uvicorn.Server):
    """uvicorn, started and stopped by the program around it."""

    def __init__(self, app: ASGIApp, bound: socket.socket, context: ssl.SSLContext | None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=GuardedProtocol,
                ws="none",
                lifespan="off",
                interface="asgi3",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=STOP_SECONDS,
            )
        )
        self._bound, self._context = bound, context

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; uvicorn's own has no bound on handshakes."""

        def make() -> asyncio.Protocol:
            return GuardedProtocol(config=self.config, server_state=self.server_state, app_state={})

        has_tls = self._context is not None
        server = await asyncio.get_running_loop().create_server(
            make,
            sock=self._bound,
            ssl=self._context,
            backlog=BACKLOG,
            ssl_handshake_timeout=HANDSHAKE_SECONDS if has_tls else None,
            ssl_shutdown_timeout=CLOSE_SECONDS if has_tls else None,
        )
        self.servers = [server]
        self.started = True

    async def on_tick(self, counter: int) -> bool:
        """Look at all connections each second."""
        if counter % 10 == 0:
            now = time.monotonic()
            metrics.CONNECTIONS.set(len(self.server_state.connections))
            for connection in list(self.server_state.connections):
                if isinstance(connection, GuardedProtocol):
                    connection.look(now)
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to the program."""
        yield


def bind(listen: str) -> socket.socket:
    """Return a socket that listens on ``host:port``: who comes early waits.

    Raises:
        SettingError: The address cannot be used.
    """
    host, _, port = listen.rpartition(":")
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError as error:
        raise SettingError("DEROPS_API_LISTEN", "environment", str(error)) from error
    return bound


class ServerCertificate:
    """What the port shows: tls.crt and tls.key of a directory, as they are now."""

    def __init__(self, directory: Path, readiness: Readiness) -> None:
        """Read the files.

        Raises:
            SettingError: They are not what they should be.
        """
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.context.set_alpn_protocols(["http/1.1"])
        self._directory, self._readiness = directory, readiness
        try:
            self._read = self._files()
            self._load()
        except (OSError, ValueError) as error:
            raise SettingError("DEROPS_API_TLS_DIRECTORY", "environment", str(error)) from error

    async def follow(self) -> None:
        """Take up files that change, until cancelled; connections that are there go on."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Look at the files once; blocks. What is wrong with them is told, and nothing changes."""
        try:
            found = self._files()
            if found != self._read:
                self._load()
                self._read = found
                structlog.get_logger("api").info("port.certificate_exchanged")
        except (OSError, ValueError) as error:
            self._readiness.degraded(_PART, f"what was read before is served: {error}")
        else:
            self._readiness.found(_PART)

    def _files(self) -> tuple[bytes, bytes]:
        names = ("tls.crt", "tls.key")
        certificate, key = ((self._directory / name).read_bytes() for name in names)
        return certificate, key

    def _load(self) -> None:
        crt, key = self._directory / "tls.crt", self._directory / "tls.key"
        # A context that fails is left with a certificate that is not its key's: try another first.
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(crt, key, password=_no_password)
        except ssl.SSLError as error:
            raise ValueError(
                f"{crt} and {key} are no certificate and its key, in PEM: {error}"
            ) from error
        self.context.load_cert_chain(crt, key, password=_no_password)
        ends = x509.load_pem_x509_certificates(crt.read_bytes())[0].not_valid_after_utc
        metrics.CERTIFICATE_EXPIRY.set(ends.timestamp())


def _no_password() -> str:
    raise ValueError("tls.key has a password: nobody is there to give it")
