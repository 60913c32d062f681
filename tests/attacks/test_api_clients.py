"""Attacks on the API by what a client sends, with a valid token: its own calls are all it harms."""

import json
import socket
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.api.fixtures import StartApi
from tests.api.rig import ApiProcess, Tenant
from tests.api.test_outer import ANNA, Written
from tests.stack.ops import metric
from tests.waiting import Starved

from derops_headend.api.caller import Caller
from derops_headend.api.outer import Outer


@pytest.fixture(scope="module")
def token(api: ApiProcess, tenant_a: Tenant) -> str:
    return tenant_a.token("viewer")


def exchange(api: ApiProcess, sent: bytes) -> bytes:
    """Send bytes; return all that comes back until the other side ends."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        received = b""
        with suppress(ConnectionError):
            connection.sendall(sent)
        with suppress(ConnectionError):
            while chunk := connection.recv(65536):
                received += chunk
        return received


def statuses(received: bytes) -> list[int]:
    """Return the statuses of the answers in what was received."""
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


SMUGGLED = b"GET /v1/openapi.json HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
FRAMINGS = {
    "CL+TE": b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" % len(SMUGGLED),
    "TE+CL": b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two CL": b"Content-Length: 0\r\nContent-Length: %d\r\n\r\n" % len(SMUGGLED),
    "CL list": b"Content-Length: 0, %d\r\n\r\n" % len(SMUGGLED),
    "CL plus": b"Content-Length: +0\r\n\r\n",
    "CL minus": b"Content-Length: -1\r\n\r\n",
    "CL huge": b"Content-Length: 99999999999999999999999\r\n\r\n",
    "CL hex": b"Content-Length: 0x0\r\n\r\n",
    "TE unknown": b"Transfer-Encoding: xchunked\r\n\r\n",
    "TE list": b"Transfer-Encoding: chunked, identity\r\n\r\n",
    "TE space": b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "TE tab": b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
    "chunk size": b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n",
    "chunk end": b"Transfer-Encoding: chunked\r\n\r\n0\n\n",
    "bare LF": b"X: y\nTransfer-Encoding: chunked\n\n0\n\n",
    "folded": b"X: y\r\n Content-Length: 0\r\n\r\n",
    "bare CR": b"X: y\rContent-Length: 0\r\n\r\n",
    "NUL": b"X: \x00\r\n\r\n",
}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_a_request_that_can_be_read_in_two_ways(api: ApiProcess, token: str, framing: str) -> None:
    """R50: a request is to end elsewhere for a proxy than for the API."""
    head = f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n".encode()

    received = exchange(api, head + FRAMINGS[framing] + SMUGGLED)

    assert statuses(received)[-1] in (400, 401, 413), received[:300]
    assert b'"openapi"' not in received
    assert b'"paths"' not in received


TARGETS = {
    b"//v1/me": 404,
    b"/v1//me": 404,
    b"/v1/./me": 404,
    b"/v1/x/../me": 404,
    b"/v1%2Fme": 404,
    b"/v1/m%65": 404,
    b"/v1/me/": 404,
    b"/v1/me;a=b": 404,
    b"/V1/me": 404,
    b"/v1/me%00": 404,
    b"http://elsewhere/v1/me": 200,
    b"/v1/me#x": 200,
    b"/" + b"a" * 2000: 413,
    b"/v1/me?" + b"a" * 5000: 413,
}


@pytest.mark.parametrize("target", TARGETS, ids=lambda each: each[:20].decode())
def test_each_path_has_one_spelling(api: ApiProcess, token: str, target: bytes) -> None:
    """R51: a path is spelt so that a proxy in front does not know it."""
    rest = f"Host: x\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\r\n".encode()

    received = exchange(api, b"GET " + target + b" HTTP/1.1\r\n" + rest)

    assert statuses(received) == [TARGETS[target]]


def test_nothing_but_http_1_is_spoken(api: ApiProcess, token: str) -> None:
    """R52: a client changes the protocol in the middle, where a proxy no longer looks."""
    head = f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    for upgrade in ("h2c", "websocket"):
        asked = f"{head}Connection: Upgrade, close\r\nUpgrade: {upgrade}\r\n\r\n"
        received = exchange(api, asked.encode() + SMUGGLED)
        assert statuses(received) == [200]
    assert statuses(exchange(api, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")) in ([400], [])


def test_requests_that_wait_for_no_answer(api: ApiProcess, token: str) -> None:
    """R53: a client sends thousands of requests at once, and reads no answer."""
    one = f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
    before = metric(api.ops_port, 'derops_api_connections_closed_total{reason="pipelined"}')

    received = exchange(api, one * 5000)

    assert len(statuses(received)) < 20
    after = metric(api.ops_port, 'derops_api_connections_closed_total{reason="pipelined"}')
    assert after == before + 1


def test_heads_without_an_end(start_api: StartApi, tenant_a: Tenant) -> None:
    """R54: many connections each send a head that never ends; a few send one of megabytes."""
    api, token = start_api(), tenant_a.token("viewer")
    with ExitStack() as opened:
        slow = [
            opened.enter_context(socket.create_connection(("127.0.0.1", api.port), timeout=60))
            for _ in range(1_100)
        ]
        for each in slow:
            with suppress(ConnectionError):  # it may be gone already, for another
                each.sendall(b"GET /v1/me HTTP/1.1\r\nX: ")
        with api.client(token) as client:
            assert client.get("/v1/me").status_code == 200
        assert metric(api.ops_port, "derops_api_connections_closed_total{") >= 100
        begun = time.monotonic()
        assert slow[-1].recv(100) == b""
        assert time.monotonic() - begun < 45
    assert exchange(api, b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000_000) == b""
    assert resident_mebibytes(api) < 250


def test_bodies_that_are_too_large_or_do_not_come(api: ApiProcess, token: str) -> None:
    """R55: a body is longer than it may be, says so or not, or never comes."""
    head = f"POST /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
    typed = f"{head}Content-Type: application/json\r\n"
    said = f"{typed}Content-Length: 65537\r\n\r\n".encode() + b"1" * 65_537
    chunked = (
        f"{typed}Transfer-Encoding: chunked\r\n\r\n".encode()
        + (b"8000\r\n" + b"1" * 32_768 + b"\r\n") * 3
    )
    untyped = f"{head}Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{{}}".encode()

    assert statuses(exchange(api, said)) == [413]
    assert statuses(exchange(api, chunked)) == [413]
    assert statuses(exchange(api, untyped)) == [415]
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        connection.sendall(f"{typed}Content-Length: 10\r\n\r\n1".encode())
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    assert statuses(received) == [400]
    assert b"within 10 s" in received


def test_one_callers_flood_leaves_the_others_be(
    api: ApiProcess, tenant_a: Tenant, tenant_b: Tenant
) -> None:
    """R56: a caller sends all it can; another tenant's calls are answered."""
    flooding, good = tenant_a.token("auditor"), tenant_b.token("viewer")

    one = f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {flooding}\r\n"
    last = f"{one}Connection: close\r\n\r\n".encode()

    def flood(_: int) -> bytes:
        return b"".join(exchange(api, f"{one}\r\n".encode() * 7 + last) for _ in range(60))

    with ThreadPoolExecutor(8) as threads:
        running = [threads.submit(flood, number) for number in range(8)]
        with api.client(good) as client:
            answers = [client.get("/v1/me") for _ in range(40)]
        told = b"".join(each.result() for each in running)

    assert {answer.status_code for answer in answers} == {200}
    assert set(statuses(told)) == {200, 429}
    assert b"\r\nretry-after: 1\r\n" in told
    assert b"/problems/too-many-requests" in told


def test_junk_tokens_beside_good_calls(start_api: StartApi, tenant_a: Tenant) -> None:
    """R57: ten thousand junk tokens, each of which looks like one of ours."""
    api = start_api()
    head, claims, signature = tenant_a.token("viewer").split(".")
    with api.client(tenant_a.token("dispatcher")) as client:
        client.get("/v1/me")
        alone = median_milliseconds(client)

        def flood(worker: int) -> bytes:
            last = [f"{worker}{n:05}" for n in range(1_250)]
            requests = [junk(f"{head}.{claims}.{signature[:-6]}{each}") for each in last]
            return b"".join(
                exchange(api, b"".join(requests[n : n + 8]) + ENDING) for n in range(0, 1_250, 8)
            )

        with ThreadPoolExecutor(8) as threads:
            running = [threads.submit(flood, worker) for worker in range(8)]
            starved = Starved(lambda: (api.process.pid,))
            beside = median_milliseconds(client)
            owed = starved.seconds() * 1000 / CALLS  # by the machine, to each call
            told = statuses(b"".join(each.result() for each in running))

    print(json.dumps({"alone_ms": round(alone, 2), "beside_junk_ms": round(beside, 2)}))
    assert set(told) == {401, 429}
    assert len(told) >= 10_000
    assert beside < 250 + owed  # of eight busy clients in this process as well, on two cores


CALLS = 100
ENDING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


def junk(token: str) -> bytes:
    return f"GET /v1/me HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def median_milliseconds(client: httpx.Client) -> float:
    """Return how long one of some calls takes."""
    times = []
    for _ in range(CALLS):
        begun = time.perf_counter()
        assert client.get("/v1/me").status_code == 200
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def resident_mebibytes(api: ApiProcess) -> float:
    status = Path(f"/proc/{api.process.pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def test_a_body_that_breaks_off_is_no_order() -> None:
    """R125: somebody on the way cuts a request off: what came was not all that was said."""
    audit = Written()
    reached: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append((await receive())["body"])

    async def authenticate(token: str, source: str) -> Caller | None:
        return ANNA

    messages = [
        {"type": "http.request", "body": b'{"watts":5}', "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        pass

    headers = [
        (b"authorization", b"Bearer good"),
        (b"content-type", b"application/json"),
        (b"content-length", b"20"),
    ]
    path = "/v1/thing"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode()}
    scope |= {"query_string": b"", "headers": headers, "client": ("192.0.2.1", 1)}
    outer = Outer(app, authenticate, audit, (), lambda: datetime.now(UTC))  # type: ignore[arg-type]

    await outer(scope, receive, send)

    assert reached == []
    assert [each[1:3] for each in audit.records] == [(400, "bad-request")]
