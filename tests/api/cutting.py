"""A TCP proxy before a server, such as the API server, that a test can hold, cut and take away."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import yaml


class CutProxy:
    """Passes bytes on; while it holds, what clients send waits, and so does what they are answered.

    It knows nothing of what is in the bytes. Where
    nobody listens behind it, its clients are cut off.
    """

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._target = (str(parts.hostname), int(parts.port or 443))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()
        self._to_server, self._to_client = threading.Event(), threading.Event()
        self._is_away = False
        self.taken = 0
        """How many connections there were so far."""
        self.held = threading.Event()
        """Set once a client sent something that waits."""

    def __enter__(self) -> Self:
        self.pass_on()
        self._run(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self.pass_on()
        self.cut()
        for each in self._threads:
            each.join(10)
        self._listener.close()

    def pass_on(self) -> None:
        """Pass on what comes and what waits."""
        self._is_away = False
        self._to_server.set()
        self._to_client.set()

    def hold(self) -> None:
        """Hold both what is sent and what is answered."""
        self.held.clear()
        self._to_server.clear()
        self._to_client.clear()

    def pass_to_server(self) -> None:
        """Pass on what was sent; its answers wait."""
        self._to_server.set()

    def cut(self) -> None:
        """End all connections; what waits is lost."""
        with self._lock:
            ended, self._open = self._open, []
        for each in ended:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def take_away(self) -> None:
        """End all connections, and each new one, until ``pass_on``."""
        self._is_away = True
        self.cut()

    def kubeconfig(self, config: str, directory: Path) -> str:
        """Return the path of a copy of a kubeconfig that leads here."""
        document = yaml.safe_load(Path(config).read_text())
        document["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{self.port}"
        path = directory / f"cut-{self.port}.kubeconfig"
        path.write_text(yaml.safe_dump(document))
        return str(path)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.taken += 1
            with self._lock:
                server = None if self._is_away else self._reach()
                if server is None:
                    client.close()
                    continue
                self._open += [client, server]
            for source, sink, gate, told in (
                (client, server, self._to_server, self.held),
                (server, client, self._to_client, None),
            ):
                self._run(self._pump, source, sink, gate, told)

    def _reach(self) -> socket.socket | None:
        with suppress(OSError):
            return socket.create_connection(self._target, 5)
        return None

    def _run(self, work: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    @staticmethod
    def _pump(
        source: socket.socket,
        sink: socket.socket,
        gate: threading.Event,
        told: threading.Event | None,
    ) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if told is not None and not gate.is_set():
                    told.set()
                gate.wait()
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
