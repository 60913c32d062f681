"""A nats-server with JetStream of one's own."""

import os
import shutil
import socket
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.stack import places
from tests.stack.processes import Process, StackError

_MODULE = "github.com/nats-io/nats-server/v2"
_VERSION = "v2.14.9"


class NatsServer:
    """A server on a free loopback port; what it acknowledges is on its disk.

    Args:
        more: Further lines of its configuration.
    """

    def __init__(self, more: str = "") -> None:
        self._more = more
        self._cleanup = ExitStack()
        self.port = places.free_port()
        self.url = f"nats://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        directory = self._cleanup.enter_context(places.private_directory("nats"))
        self.directory = directory
        config = directory / "nats.conf"
        config.write_text(
            f'listen: "127.0.0.1:{self.port}"\n'
            f'jetstream {{ store_dir: "{directory / "store"}", sync_interval: always }}\n'
            + self._more
        )
        self.process = Process(
            "nats", [str(find_program()), "-c", str(config)], directory=directory
        )
        self._cleanup.callback(self.process.terminate)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    def start(self) -> None:
        """Start, or start again after a kill, and wait until it takes connections."""
        self.process.start()
        self.process.wait_until(self._accepts)

    def _accepts(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                return connection.recv(4) == b"INFO"
        except OSError:
            return False


def find_program() -> Path:
    """Return nats-server: on PATH, or built now, once for this user."""
    places.skip_without_parts()
    on_path = shutil.which("nats-server")
    if on_path:
        return Path(on_path)
    folder = places.cache() / f"nats-server-{_VERSION}"
    program = folder / "nats-server"
    with places.locked("nats-server"):
        if program.exists():
            return program
        go = shutil.which("go")
        if go is None:
            raise StackError("nats-server is not on PATH, and there is no Go to build it with")
        print(f"building nats-server {_VERSION} (once, about half a minute)", flush=True)
        done = subprocess.run(
            [go, "install", f"{_MODULE}@{_VERSION}"],
            env=os.environ | {"GOBIN": str(folder)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StackError(f"go install failed\n{done.stderr[-2000:]}")
    return program
