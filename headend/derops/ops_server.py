"""An HTTP server for probes, with a bound on threads, memory and lines, whoever reaches it."""

import io
import socket
import threading
from http.server import ThreadingHTTPServer
from typing import Any

from derops import metrics

MAX_CONNECTIONS = 16
"""Each has a thread. The oldest is closed for a newer one, so that a probe is always answered."""

MAX_REQUEST_BYTES = 16 * 1024
READ_SECONDS = 5.0
_ROOM_SECONDS = 1.0


class BoundedServer(ThreadingHTTPServer):
    """Serves up to ``MAX_CONNECTIONS`` at a time."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        self._open: dict[socket.socket, None] = {}
        self._lock = threading.Lock()
        self._room = threading.Semaphore(MAX_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Serve a connection from a thread of its own."""
        if not self._room.acquire(blocking=False):
            metrics.OPS_CONNECTIONS_CLOSED.inc()
            self._close_oldest()
            if not self._room.acquire(timeout=_ROOM_SECONDS):
                self.shutdown_request(request)
                return
        with self._lock:
            self._open[request] = None
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection, then make room."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._lock:
            self._open.pop(request, None)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: that a peer went away is not worth a line, and it could do so for ever."""

    def _close_oldest(self) -> None:
        with self._lock:
            oldest = next(iter(self._open), None)
            if oldest is not None:
                del self._open[oldest]
                try:
                    oldest.shutdown(socket.SHUT_RDWR)
                except OSError:  # it went by itself
                    return


class _FirstBytes(io.BufferedIOBase):
    """The first bytes of a connection; behind a bound it seems to end."""

    def __init__(self, source: io.BufferedIOBase) -> None:
        self._source, self._left = source, MAX_REQUEST_BYTES

    def readline(self, size: int | None = -1, /) -> bytes:
        most = self._left if size is None or size < 0 else min(size, self._left)
        line = self._source.readline(most)
        self._left -= len(line)
        return line

    def close(self) -> None:
        self._source.close()
        super().close()


def keep_first_bytes(source: io.BufferedIOBase) -> Any:
    """Return a file of the first ``MAX_REQUEST_BYTES`` of another; for reading lines only."""
    return _FirstBytes(source)
