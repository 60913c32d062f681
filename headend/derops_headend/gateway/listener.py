"""A port whose certificate and client CA may change while streams live.

gRPC's own way to exchange them crashes the process under load (grpc#36693). So each set of
credentials has a server of its own: the new server takes over the port, the one before takes no new
streams, and its streams go on.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc
import structlog

from derops.errors import SettingError
from derops.observability import Readiness
from derops.pem import IdentityFiles
from derops_headend.gateway import metrics

DRAIN_SECONDS = 7200.0
"""How long streams of earlier credentials may go on. An agent's connection lasts 66 min at most."""

MAX_DRAINING = 3
"""The most servers of earlier credentials; of more the oldest ends, and its peers connect anew."""

EXCHANGE_SECONDS = 10.0
"""The least time between two exchanges of a port."""

LOOK_SECONDS = 5.0
"""How often the files are read again."""

_BIND_SECONDS = 0.05
_LAST_WORD_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialFiles:
    """Where the credentials of a port lie, as a pod mounts them."""

    setting: str
    """The setting that an error about the files names."""

    directory: Path
    """Holds tls.crt and tls.key."""

    client_ca: Path

    def read(self) -> IdentityFiles:
        """Read and check the files; blocks.

        Raises:
            SettingError: One is missing or no PEM, or the key is not the certificate's.
        """
        try:
            return IdentityFiles.read(self.directory, self.client_ca)
        except (OSError, ValueError) as error:
            raise SettingError(self.setting, "environment", str(error)) from error


def for_server(identity: IdentityFiles) -> grpc.ServerCredentials:
    """Return a server's credentials for gRPC: what it shows, and the CA of its clients."""
    return grpc.ssl_server_credentials(
        [(identity.key, identity.certificate)], identity.ca, require_client_auth=True
    )


class Port:
    """One port: ``open``, then ``follow`` the files, then ``close``."""

    def __init__(
        self,
        name: str,
        setting: str,
        address: str,
        files: CredentialFiles,
        make_server: Callable[[], grpc.aio.Server],
        readiness: Readiness,
        now: Callable[[], datetime],
        *,
        is_vital: bool,
    ) -> None:
        """Make a port that does not listen yet.

        Args:
            name: ``agent`` or ``control``.
            setting: The setting with the address.
            address: Where to listen, host:port.
            files: Its credentials, which are read again and again.
            make_server: Returns a server with its services, and nothing bound.
            readiness: Is told what is wrong with the files, and that the certificate expired.
            now: The clock by which it expires.
            is_vital: Whether the gateway is not ready while this port's certificate has expired.
        """
        self.number = 0
        self._name, self._setting, self._address = name, setting, address
        self._files, self._make_server = files, make_server
        self._readiness, self._now, self._is_vital = readiness, now, is_vital
        self._part, self._expiry = f"{name} port certificate", f"{name} port certificate's end"
        self._server: grpc.aio.Server | None = None
        self._draining: list[asyncio.Task[None]] = []
        self._servers: list[grpc.aio.Server] = []
        self._exchanged = -float("inf")
        self._log = structlog.get_logger("gateway").bind(port=name)

    async def open(self) -> None:
        """Listen; ``number`` is set then.

        Raises:
            SettingError: The files are wrong, or the port cannot be bound.
        """
        self._credentials = await asyncio.to_thread(self._files.read)
        server = self._make_server()
        try:
            self.number = server.add_secure_port(self._address, for_server(self._credentials))
        except RuntimeError as error:
            raise SettingError(self._setting, "environment", str(error)) from error
        self._address = f"{self._address.rpartition(':')[0]}:{self.number}"
        self._server = server
        self._note_expiry()

    async def start(self) -> None:
        """Begin to serve."""
        if self._server is not None:
            await self._server.start()

    async def follow(self) -> None:
        """Use files that change, until cancelled."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """Read the files once; if they are wrong, tell the readiness and keep those before."""
        try:
            fresh = await asyncio.to_thread(self._files.read)
        except SettingError as error:
            self._readiness.degraded(self._part, f"what was read before is served: {error}")
        else:
            self._readiness.found(self._part)
            if fresh != self._credentials and self._may_exchange():
                await self.exchange(fresh)
        self._note_expiry()

    async def exchange(self, fresh: IdentityFiles) -> None:
        """Have a new server take over the port; streams of the one before go on."""
        old, server = self._server, self._make_server()
        if old is not None:
            # Its listener closes in the first step of the task, so the port is free for the other.
            self._draining.append(asyncio.create_task(old.stop(DRAIN_SECONDS)))
            self._servers.append(old)
            await asyncio.sleep(0)
        await self._bind(server, fresh)
        await server.start()
        self._server, self._credentials = server, fresh
        self._exchanged = time.monotonic()
        self._log.info("port.certificate_renewed", until=fresh.ends.isoformat())
        await self._end_oldest()

    def _may_exchange(self) -> bool:
        return time.monotonic() >= self._exchanged + EXCHANGE_SECONDS

    async def _bind(self, server: grpc.aio.Server, credentials: IdentityFiles) -> None:
        while True:
            try:
                server.add_secure_port(self._address, for_server(credentials))
            except RuntimeError as error:
                self._readiness.waiting(f"{self._name} port", f"cannot listen: {error}")
                await asyncio.sleep(_BIND_SECONDS)
            else:
                self._readiness.found(f"{self._name} port")
                return

    async def _end_oldest(self) -> None:
        """Forget servers that have ended, and end those beyond the bound."""
        pairs = zip(self._servers, self._draining, strict=True)
        living = [(server, task) for server, task in pairs if not task.done()]
        beyond = living[: max(0, len(living) - MAX_DRAINING)]
        for server, _ in beyond:
            await server.stop(_LAST_WORD_SECONDS)
        self._servers = [server for server, _ in living[len(beyond) :]]
        self._draining = [task for _, task in living[len(beyond) :]]

    def _note_expiry(self) -> None:
        ends = self._credentials.ends
        metrics.CERTIFICATE_EXPIRY.labels(port=self._name).set(ends.timestamp())
        if self._now() < ends:
            self._readiness.found(self._expiry)
            return
        why = f"over since {ends:%Y-%m-%d %H:%M} UTC, nobody can connect: see why it is not renewed"
        if self._is_vital:
            self._readiness.waiting(self._expiry, why)
        else:
            self._readiness.degraded(self._expiry, why)

    async def close(self, grace_seconds: float) -> None:
        """Stop all servers of this port."""
        servers = [*self._servers, *([self._server] if self._server is not None else [])]
        await asyncio.gather(*(server.stop(grace_seconds) for server in servers))
        await asyncio.gather(*self._draining)
