"""The port: uvicorn in this process, TLS from files that may change, and bounds on slow clients.

uvicorn itself waits for a client for ever: for the end of a head, for the reading of an answer. And
it takes any number of requests that a client sends before it has read the answers.
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
"""How long a client may leave full buffers unread."""

CLOSE_SECONDS, HANDSHAKE_SECONDS, KEEP_ALIVE_SECONDS, STOP_SECONDS = 5.0, 5.0, 15, 3
"""How long a close, a handshake and the time between two requests may take; and our own stop."""

MOST_CONNECTIONS = 1_000
"""With one more, the connection that is idle for longest ends; if none is idle, the new one."""

MOST_PIPELINED = 8
"""The most requests of a connection that wait for the answer to an earlier one."""

MOST_HEAD_BYTES = 65_536
"""The most bytes of a request's head, before anything looks at it."""

LOOK_SECONDS, BACKLOG = 5.0, 256
_PART = "certificate"


class GuardedProtocol(HttpToolsProtocol):
    """A connection that ends if its client is too slow, or sends too much."""

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
        """Take bytes of the client; end the connection if a head is too long."""
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
        """Note that the client reads again."""
        self._stuck_since = None
        super().resume_writing()

    def look(self, now_seconds: float) -> None:
        """End the connection if something takes too long."""
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
        """End the connection at once; the client gets no more."""
        if self._is_ended:
            return
        self._is_ended = True
        metrics.CONNECTIONS_CLOSED.labels(reason=reason).inc()
        self.transport.abort()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
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
    """Return a socket that listens on ``host:port``; early clients wait.

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
    """The certificate that the port shows: tls.crt and tls.key of a directory, as they are now."""

    def __init__(self, directory: Path, readiness: Readiness) -> None:
        """Read the files.

        Raises:
            SettingError: They cannot be read, or are not a certificate and its key.
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
        """Use files that change, until cancelled; open connections go on."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await asyncio.to_thread(self.look)

    def look(self) -> None:
        """Read the files once; blocks. If they are wrong, tell the readiness and change nothing."""
        try:
            found = self._files()
            if found != self._read:
                self._load()
                self._read = found
                structlog.get_logger("api").info("port.certificate_renewed")
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
