"""The port: TLS that changes under open connections, plaintext only where it may be, and ends."""

import asyncio
import socket
import ssl
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.fixtures import StartApi
from tests.api.rig import ApiProcess, Tenant
from tests.pki import Authority
from tests.stack.mounts import write_mount
from tests.stack.places import free_port
from tests.stack.processes import StackError

from derops.errors import SettingError
from derops.settings import load_settings
from derops_headend.api import server
from derops_headend.api.outer import BODY_SECONDS
from derops_headend.api.settings import ApiSettings, check_settings


def mount(directory: Path, authority: Authority) -> None:
    write_mount(directory, authority.server(["localhost"], ["127.0.0.1"]).files)


def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cadata=authority.pem.decode())


def own_address(answer: httpx.Response) -> object:
    """Return from where the client spoke: another connection has another port."""
    return answer.extensions["network_stream"].get_extra_info("client_addr")


def test_a_new_certificate_is_served_and_open_connections_go_on(
    start_api: StartApi, tenant_a: Tenant, tmp_path: Path
) -> None:
    old, new = Authority("old"), Authority("new")
    mount(tmp_path / "tls", old)
    api = start_api(tls_directory=str(tmp_path / "tls"))
    token = tenant_a.token("viewer")
    with api.client(token, verify=trusting(old)) as client:
        before = client.get("/v1/me")
        assert before.status_code == 200
        mount(tmp_path / "tls", new)
        wait(lambda: answers(api, token, new))

        after = client.get("/v1/me")
        assert after.status_code == 200
        assert own_address(after) == own_address(before)
    assert not answers(api, token, old)
    assert speaks(api, new, ssl.TLSVersion.TLSv1_2)
    assert not speaks(api, new, ssl.TLSVersion.TLSv1_1)

    write_mount(tmp_path / "tls", {"tls.crt": b"none", "tls.key": b"none"})
    wait(lambda: "what was read before is served" in ready(api))
    assert f"{tmp_path}/tls/tls.key are no certificate and its key" in ready(api)
    assert answers(api, token, new)


def wait(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def speaks(api: ApiProcess, authority: Authority, version: ssl.TLSVersion) -> bool:
    context = trusting(authority)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        try:
            context.wrap_socket(connection, server_hostname="localhost").close()
        except (ssl.SSLError, ConnectionError):
            return False
    return True


def answers(api: ApiProcess, token: str, authority: Authority) -> bool:
    with api.client(token, verify=trusting(authority)) as client:
        try:
            return client.get("/v1/me").status_code == 200
        except httpx.ConnectError:
            return False


def ready(api: ApiProcess) -> str:
    return httpx.get(f"http://127.0.0.1:{api.ops_port}/readyz").text


def test_plaintext_is_refused_beyond_loopback(start_api: StartApi) -> None:
    with pytest.raises(StackError, match=r"DEROPS_API_TLS_DIRECTORY .* is required"):
        start_api(listen=f"0.0.0.0:{free_port()}")


def test_it_ends_in_time_whoever_is_connected(start_api: StartApi, tenant_a: Tenant) -> None:
    api = start_api()
    token = tenant_a.token("viewer")
    head = f"POST /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    with api.client(token) as idle, socket.create_connection(("127.0.0.1", api.port)) as half:
        assert idle.get("/v1/me").status_code == 200
        half.sendall(f"{head}Content-Length: 10\r\n\r\n1".encode())

        begun = time.monotonic()
        assert api.process.terminate() == 0
        took = time.monotonic() - begun

    assert took < BODY_SECONDS - 1, "it waited for what nobody sends"


App = Callable[[Any, Any, Any], Awaitable[None]]


@asynccontextmanager
async def served(app: App) -> AsyncIterator[int]:
    """Serve an application in this process and give its port."""
    bound = server.bind("127.0.0.1:0")
    running = server.Server(app, bound, None)
    task = asyncio.create_task(running.serve())
    yield bound.getsockname()[1]
    running.should_exit = True
    await task
    bound.close()


async def test_who_does_not_read_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "READ_SECONDS", 1.0)
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"a" * 65_536, "more_body": True})
        await send({"type": "http.response.body"})
        ended.set()

    async with served(app) as port:
        with socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            await asyncio.wait_for(ended.wait(), 20)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org"])
def test_what_is_no_loopback(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEROPS_API_DATABASE_URL", "postgresql://localhost/x")
    monkeypatch.setenv("DEROPS_API_DATA_DIRECTORY", "/nowhere")
    monkeypatch.setenv("DEROPS_API_LISTEN", f"[{host}]:8443" if ":" in host else f"{host}:8443")
    with pytest.raises(SettingError, match="plaintext"):
        check_settings(load_settings(ApiSettings))
    monkeypatch.setenv("DEROPS_API_TRUSTED_PROXIES", "10.0.0.0/8, fd00::/8")
    check_settings(load_settings(ApiSettings))
    monkeypatch.delenv("DEROPS_API_TRUSTED_PROXIES")
    for good in ("127.0.0.1:1", "[::1]:1", "localhost:1"):
        monkeypatch.setenv("DEROPS_API_LISTEN", good)
        check_settings(load_settings(ApiSettings))
