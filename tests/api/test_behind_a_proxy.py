"""A real proxy in front of the API, as ingress controllers set it: TLS ends and begins anew.

All of it is on loopback: proxy and API are at 127.0.0.1, callers at other addresses of 127.0.0.0/8.
"""

import base64
import json
import ssl
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from tests.api.cutting import CutProxy
from tests.api.fixtures import StartApi
from tests.api.rig import ApiProcess, Tenant, make_tenant, problem
from tests.crds.manifests import BATTERY, merged
from tests.stack.controlplane import ControlPlane
from tests.stack.mounts import write_mount
from tests.stack.nginx import NAME, Nginx
from tests.stack.pki import Authority

NAMESPACE = "proxied"
ASSETS, ORDERS = (f"/v1/namespaces/{NAMESPACE}/{each}" for each in ("assets", "dispatches"))
ORDER = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}
PROXY, ALICE, MALLORY = "127.0.0.1", "127.0.0.2", "127.0.0.3"
FORGED = "203.0.113.9"

Behind = Callable[..., Nginx]


@pytest.fixture(scope="module")
def tenant(kube: ControlPlane) -> Tenant:
    made = make_tenant(kube, NAMESPACE)
    kube.apply(merged(BATTERY, {"metadata": {"namespace": NAMESPACE}}))
    return made


@pytest.fixture
def authority() -> Authority:
    return Authority("server")


@pytest.fixture
def tls_api(start_api: StartApi, authority: Authority, tmp_path: Path) -> Callable[..., ApiProcess]:
    """Return what starts an API with a certificate like the chart's, which trusts the proxy."""
    pair = authority.server(["derops-api", "derops-api.derops-system.svc"], [])
    files = {"tls.crt": pair.certificate.encode(), "tls.key": pair.key.encode()}
    write_mount(tmp_path / "tls", files)

    def start(**settings: str) -> ApiProcess:
        return start_api(
            tls_directory=str(tmp_path / "tls"), trusted_proxies=f"{PROXY}/32", **settings
        )

    return start


@pytest.fixture
def behind(authority: Authority) -> Iterator[Behind]:
    """Return what starts a proxy before ports of loopback."""
    with ExitStack() as opened:

        def start(*ports: int, **settings: Any) -> Nginx:
            given: dict[str, Any] = {"upstream_authority": authority.certificate, **settings}
            return opened.enter_context(Nginx(ports, **given))

        yield start


def client_of(url: str, authority: str, token: str, address: str = ALICE) -> httpx.Client:
    """Return a client at an address of loopback, which speaks HTTP/2 where that is spoken."""
    transport = httpx.HTTPTransport(
        local_address=address, http2=True, verify=ssl.create_default_context(cadata=authority)
    )
    headers = {"Authorization": f"Bearer {token}"}
    return httpx.Client(base_url=url, headers=headers, transport=transport, timeout=30)


def sources(database_url: str, *answers: httpx.Response) -> list[str]:
    """Return the addresses that the audit has of calls, once it has all of them."""
    wanted = [each.headers["x-request-id"] for each in answers]
    query = (
        "select distinct request_id, body::json->>'source' from audit_event "
        "where request_id = any(%s)"
    )
    found: dict[str, str] = {}

    def look() -> bool:
        with psycopg.connect(database_url) as connection:
            found.update(dict(connection.execute(query, [wanted]).fetchall()))
        return len(found) == len(wanted)

    eventually(look)
    return [found[each] for each in wanted]


def eventually(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("said", ["$remote_addr", "$proxy_add_x_forwarded_for"])
def test_a_callers_address_is_what_the_proxy_saw(
    tls_api: Callable[..., ApiProcess],
    behind: Behind,
    tenant: Tenant,
    api_database_url: str,
    said: str,
) -> None:
    proxy = behind(tls_api().port, forwarded_for=said)
    forged = {"X-Forwarded-For": FORGED, "X-Real-IP": FORGED, "Forwarded": f"for={FORGED}"}

    with client_of(proxy.url, proxy.authority, tenant.token("viewer")) as alice:
        honest, forging = alice.get(ASSETS), alice.get(ASSETS, headers=forged)

    assert (honest.status_code, honest.http_version) == (200, "HTTP/2")
    assert forging.status_code == 200
    assert sources(api_database_url, honest, forging) == [ALICE, ALICE]


def test_past_the_proxy_nobody_chooses_an_address(
    tls_api: Callable[..., ApiProcess], authority: Authority, tenant: Tenant, api_database_url: str
) -> None:
    api = tls_api()

    with client_of(api.url, authority.certificate, tenant.token("viewer"), MALLORY) as mallory:
        answer = mallory.get(
            ASSETS,
            headers={"X-Forwarded-For": FORGED},
            extensions={"sni_hostname": "derops-api"},
        )

    assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")
    assert sources(api_database_url, answer) == [MALLORY]


def test_a_strangers_flood_keeps_nobody_else_behind_the_proxy_out(
    tls_api: Callable[..., ApiProcess], behind: Behind, tenant: Tenant
) -> None:
    proxy = behind(tls_api().port)
    good = tenant.token("viewer")

    with ThreadPoolExecutor(8) as pool, client_of(proxy.url, proxy.authority, "", MALLORY) as it:
        flood = [
            pool.submit(it.get, ASSETS, headers={"Authorization": f"Bearer {altered(good, each)}"})
            for each in range(400)
        ]
        with client_of(proxy.url, proxy.authority, good) as alice:
            eventually(
                lambda: any(each.done() and each.result().status_code == 429 for each in flood)
            )
            answer = alice.get(ASSETS)
        told = {each.result().status_code for each in flood}

    assert answer.status_code == 200, answer.text
    assert told == {401, 429}


def altered(token: str, number: int) -> str:
    """Return a token like another one, of no signature: a look alone does not tell it apart."""
    head, body, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = json.dumps({**claims, "jti": str(number)}).encode()
    return f"{head}.{base64.urlsafe_b64encode(other).decode().rstrip('=')}.{'x' * 40}"


def test_the_apis_own_limits_are_told_through_it(
    tls_api: Callable[..., ApiProcess], behind: Behind, tenant: Tenant
) -> None:
    proxy = behind(tls_api().port)
    many = {f"X-Many-{number}": "a" * 6_000 for number in range(4)}

    with client_of(proxy.url, proxy.authority, tenant.token("dispatcher")) as alice:
        for size in (65_537, 200_000, 1_000_000):
            key = {"Idempotency-Key": f"too-large-{size}", "Content-Type": "application/json"}
            problem(alice.post(ORDERS, content=b" " * size, headers=key), 413, "too-large")
        problem(alice.get(ASSETS, headers=many), 413, "too-large")
        problem(alice.get(f"{ASSETS}?limit={'1' * 5_000}"), 413, "too-large")
        assert alice.get(ASSETS).status_code == 200


def test_connections_to_the_api_are_kept_and_made_anew_when_they_are_cut(
    tls_api: Callable[..., ApiProcess], behind: Behind, tenant: Tenant
) -> None:
    with CutProxy(f"https://127.0.0.1:{tls_api().port}") as way:
        proxy = behind(way.port)
        with client_of(proxy.url, proxy.authority, tenant.token("viewer")) as alice:
            assert {alice.get(ASSETS).status_code for _ in range(100)} == {200}
            assert way.taken == 1

            way.cut()

            assert {alice.get(ASSETS).status_code for _ in range(10)} == {200}
            assert way.taken == 2


@pytest.mark.parametrize(
    ("settings", "status"),
    [
        pytest.param({}, 502, id="cut"),
        pytest.param({"proxy_read_timeout": "1s"}, 504, id="given up by the proxy"),
    ],
)
def test_an_answer_that_the_proxy_did_not_get_is_asked_for_again(
    tls_api: Callable[..., ApiProcess],
    behind: Behind,
    tenant: Tenant,
    kube: ControlPlane,
    settings: dict[str, str],
    status: int,
) -> None:
    key = {"Idempotency-Key": f"unanswered-{status}"}
    with CutProxy(f"https://127.0.0.1:{tls_api().port}") as way, ThreadPoolExecutor(1) as pool:
        proxy = behind(way.port, settings=settings)
        with client_of(proxy.url, proxy.authority, tenant.token("dispatcher")) as alice:
            assert alice.get(ORDERS).status_code == 200  # no handshake gets through what holds
            before = creates(kube)
            way.hold()
            lost = pool.submit(alice.post, ORDERS, json=ORDER, headers=key)
            assert way.held.wait(10)
            way.pass_to_server()
            eventually(lambda: len(creates(kube)) > len(before))
            if not settings:
                way.cut()
            unanswered = lost.result()
            way.pass_on()

            again = alice.post(ORDERS, json=ORDER, headers=key)

    assert unanswered.status_code == status
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert creates(kube) == [*before, again.json()["name"]]


def test_a_proxy_that_repeats_orders_itself_at_another_replica_makes_one(
    tls_api: Callable[..., ApiProcess], behind: Behind, tenant: Tenant, kube: ControlPlane
) -> None:
    first, second = tls_api(replica="api-0"), tls_api(replica="api-1")
    key = {"Idempotency-Key": "repeated-by-the-proxy"}
    with CutProxy(f"https://127.0.0.1:{first.port}") as way, ThreadPoolExecutor(1) as pool:
        settings = {"proxy_next_upstream": "error timeout non_idempotent"}
        proxy = behind(way.port, second.port, settings=settings)
        with client_of(proxy.url, proxy.authority, tenant.token("dispatcher")) as alice:
            assert {alice.get(ORDERS).status_code for _ in range(2)} == {200}  # one at each
            assert way.taken == 1
            before = creates(kube)
            way.hold()
            answer = pool.submit(alice.post, ORDERS, json=ORDER, headers=key)
            assert way.held.wait(10)
            way.pass_to_server()
            eventually(lambda: len(creates(kube)) > len(before))
            first.process.kill()
            way.cut()
            made = answer.result()
            way.pass_on()

    assert (made.status_code, made.headers["idempotency-replayed"]) == (200, "true")
    assert creates(kube) == [*before, made.json()["name"]]


def creates(kube: ControlPlane) -> list[str]:
    """Return the Dispatches of our namespace that the API server made, by its own audit."""
    return [
        str(about["name"])
        for each in kube.audit_events()
        if isinstance(about := each["objectRef"], dict)
        and (each["verb"], about.get("namespace")) == ("create", NAMESPACE)
        and about.get("resource") == "dispatches"
        and each["responseStatus"] == {"metadata": {}, "code": 201}
    ]


def test_a_replica_that_ends_takes_no_call_with_it(
    tls_api: Callable[..., ApiProcess], behind: Behind, tenant: Tenant
) -> None:
    first, second = tls_api(replica="api-0"), tls_api(replica="api-1")
    proxy = behind(first.port, second.port)

    with client_of(proxy.url, proxy.authority, tenant.token("viewer")) as alice:
        assert {alice.get(ASSETS).status_code for _ in range(20)} == {200}
        assert first.process.terminate() == 0
        assert {alice.get(ASSETS).status_code for _ in range(20)} == {200}


@pytest.mark.parametrize("wrong", ["name", "authority"])
def test_the_proxy_takes_no_other_certificate_for_the_apis(
    tls_api: Callable[..., ApiProcess], behind: Behind, tenant: Tenant, wrong: str
) -> None:
    settings = {
        "name": {"upstream_name": NAME},
        "authority": {"upstream_authority": Authority("server").certificate},
    }[wrong]
    proxy = behind(tls_api().port, **settings)

    with client_of(proxy.url, proxy.authority, tenant.token("viewer")) as alice:
        assert alice.get(ASSETS).status_code == 502
    assert "upstream SSL certificate" in proxy.log
