"""A real reverse proxy before servers that speak TLS, set as ingress-nginx sets its own."""

import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.pki import Authority
from tests.stack import debian, places
from tests.stack.processes import Process

NAME = "derops.example.com"

_SETTINGS = {
    "keepalive_timeout": "75s",
    "client_header_buffer_size": "1k",
    "large_client_header_buffers": "4 8k",
    "client_max_body_size": "1m",
    "client_body_timeout": "60s",
    "proxy_http_version": "1.1",
    "proxy_connect_timeout": "5s",
    "proxy_send_timeout": "60s",
    "proxy_read_timeout": "60s",
    "proxy_buffering": "off",
    "proxy_buffer_size": "4k",
    "proxy_request_buffering": "on",
    "proxy_next_upstream": "error timeout",
    "proxy_next_upstream_tries": "3",
    "proxy_ssl_verify": "on",
    "proxy_ssl_verify_depth": "1",
    "proxy_ssl_protocols": "TLSv1.2 TLSv1.3",
}
"""What the controller writes where nothing else is asked for, as far as a request meets it."""

_HEADERS = {
    "Host": "$http_host",
    "Connection": '""',
    "X-Request-ID": "$request_id",
    "X-Real-IP": "$remote_addr",
    "X-Forwarded-For": "$remote_addr",
    "X-Forwarded-Host": "$http_host",
    "X-Forwarded-Port": "$server_port",
    "X-Forwarded-Proto": "$scheme",
    "X-Scheme": "$scheme",
    "X-Original-Forwarded-For": "$http_x_forwarded_for",
    "Proxy": '""',
}


class Nginx:
    """nginx on a free port of loopback, which ends TLS and begins it anew.

    Args:
        upstreams: Ports of loopback.
        upstream_authority: PEM of whose certificates it takes for theirs.
        upstream_name: What these must be for.
        settings: Directives in place of the usual ones.
        forwarded_for: What it says of a caller's address.
    """

    def __init__(
        self,
        upstreams: Sequence[int],
        *,
        upstream_authority: str,
        upstream_name: str = "derops-api",
        settings: Mapping[str, str] | None = None,
        forwarded_for: str = "$remote_addr",
    ) -> None:
        self._cleanup = ExitStack()
        self.port = places.free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self._authority = Authority("proxy")
        self.authority = self._authority.pem.decode()
        """PEM of whose certificate callers see."""
        self._upstreams, self._upstream_authority = upstreams, upstream_authority
        self._settings = {**_SETTINGS, "proxy_ssl_name": upstream_name, **(settings or {})}
        self._headers = {**_HEADERS, "X-Forwarded-For": forwarded_for}

    def __enter__(self) -> Self:
        directory = self._cleanup.enter_context(places.private_directory("nginx"))
        self._authority.server([NAME], ["127.0.0.1"]).write(directory)
        (directory / "upstream-ca.crt").write_text(self._upstream_authority)
        (directory / "nginx.conf").write_text(self._configuration(directory))
        self.process = Process(
            "nginx",
            [str(find_program()), "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"],
            directory=directory,
        )
        self._cleanup.callback(self.process.terminate)
        self.process.start()
        self.process.wait_until(self._accepts)
        return self

    def __exit__(self, *_: object) -> None:
        self._cleanup.close()

    @property
    def log(self) -> str:
        """What it complained of so far."""
        return self.process.log_file.read_text()

    def _configuration(self, directory: Path) -> str:
        servers = "".join(f"server 127.0.0.1:{port}; " for port in self._upstreams)
        temporary = "".join(
            f"{what}_temp_path {directory / what};\n"
            for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        settings = "".join(f"{name} {value};\n" for name, value in self._settings.items())
        headers = "".join(
            f"proxy_set_header {name} {said};\n" for name, said in self._headers.items()
        )
        user = "user root;" if os.geteuid() == 0 else ""
        return f"""
daemon off; worker_processes 1; pid {directory / "nginx.pid"}; error_log stderr info; {user}
events {{ worker_connections 1024; }}
http {{
access_log off;
{temporary}{settings}{headers}
proxy_ssl_trusted_certificate {directory / "upstream-ca.crt"};
upstream api {{ {servers} keepalive 320; keepalive_timeout 60s; keepalive_requests 10000; }}
server {{
listen 127.0.0.1:{self.port} ssl http2; server_name {NAME};
ssl_certificate {directory / "tls.crt"}; ssl_certificate_key {directory / "tls.key"};
location / {{ proxy_pass https://api; }}
}}
}}
"""

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


def find_program() -> Path:
    """Return nginx: on PATH, or out of Debian's package, once for this user."""
    return debian.find_program("nginx", "nginx", "usr/sbin/nginx")
