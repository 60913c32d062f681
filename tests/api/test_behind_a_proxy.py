"""A real proxy in front of the API, as ingress controllers set it: TLS ends and begins anew.

All of it is on loopback: proxy and API are at 127.0.0.1, callers at other addresses of 127.0.0.0/8.
"""

import base64
import json
import ssl
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import psycopg
import pytest
from tests.api.cutting import CutProxy
from tests.api.fixtures import StartApi
from tests.api.rig import ApiProcess, Tenant, make_tenant, problem
from tests.crds.manifests import BATTERY, merged
from tests.pki import Authority
from tests.stack.controlplane import ControlPlane
from tests.stack.mounts import write_mount
from tests.stack.nginx import NAME, Nginx
from tests.waiting import eventually

NAMESPACE = "proxied"
ASSETS, ORDERS = (f"/v1/namespaces/{NAMESPACE}/{each}" for each in ("assets", "dispatches"))
ORDER = {
    "asset": "battery-7",
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "durationSeconds": 1800,
}
PROXY, ALICE, MALLORY, PASSING = (f"127.0.0.{each}" for each in (1, 2, 3, 4))
FORGED = "203.0.113.9"

Behind = Callable[..., Nginx]


@pytest.fixture(scope="module")
def tenant(kube: ControlPlane) -> Tenant:
    made = make_tenant(kube, NAMESPACE)
    kube.apply(merged(BATTERY, {"metadata": {"namespace": NAMESPACE}}))
    return made


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority("server")


@pytest.fixture(scope="module")
def settings(authority: Authority, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return settings with a certificate like the chart's, by which the proxy is trusted."""
    directory = tmp_path_factory.mktemp("tls")
    leaf = authority.server(["derops-api", "derops-api.derops-system.svc"])
    write_mount(directory, leaf.files)
    return {"tls_directory": str(directory), "trusted_proxies": f"{PROXY}/32"}


@pytest.fixture(scope="module")
def api(
    api_config: str,
    api_role_url: str,
    settings: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ApiProcess]:
    """Return an API that no test of this file ends."""
    given = {f"DEROPS_API_{name.upper()}": value for name, value in settings.items()}
    directory = tmp_path_factory.mktemp("api")
    with ApiProcess(directory, api_config, api_role_url, given) as running:
        yield running


@pytest.fixture
def behind(authority: Authority) -> Iterator[Behind]:
    """Return what starts a proxy before ports of loopback."""
    with ExitStack() as opened:

        def start(*ports: int, **settings: Any) -> Nginx:
            given: dict[str, Any] = {"upstream_authority": authority.pem.decode(), **settings}
            return opened.enter_context(Nginx(ports, **given))

        yield start


def client_of(
    url: str, authority: str, token: str, address: str = ALICE, *, http2: bool = True
) -> httpx.Client:
    """Return a client at an address of loopback."""
    transport = httpx.HTTPTransport(
        local_address=address, http2=http2, verify=ssl.create_default_context(cadata=authority)
    )
    return httpx.Client(base_url=url, headers=bearer(token), transport=transport, timeout=30)


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


@pytest.mark.parametrize("said", ["$remote_addr", "$proxy_add_x_forwarded_for"])
def test_a_callers_address_is_what_the_proxy_saw(
    api: ApiProcess, behind: Behind, tenant: Tenant, api_database_url: str, said: str
) -> None:
    proxy = behind(api.port, forwarded_for=said)
    forged = {"X-Forwarded-For": FORGED, "X-Real-IP": FORGED, "Forwarded": f"for={FORGED}"}

    with client_of(proxy.url, proxy.authority, tenant.token("viewer")) as alice:
        honest, forging = alice.get(ASSETS), alice.get(ASSETS, headers=forged)

    assert (honest.status_code, honest.http_version) == (200, "HTTP/2")
    assert forging.status_code == 200
    assert sources(api_database_url, honest, forging) == [ALICE, ALICE]


def test_past_the_proxy_nobody_chooses_an_address(
    api: ApiProcess, authority: Authority, tenant: Tenant, api_database_url: str
) -> None:
    with client_of(api.url, authority.pem.decode(), tenant.token("viewer"), PASSING) as passing:
        answer = passing.get(
            ASSETS,
            headers={"X-Forwarded-For": FORGED},
            extensions={"sni_hostname": "derops-api"},
        )

    assert (answer.status_code, answer.http_version) == (200, "HTTP/1.1")
    assert sources(api_database_url, answer) == [PASSING]


def test_a_strangers_flood_keeps_nobody_else_behind_the_proxy_out(
    api: ApiProcess, behind: Behind, tenant: Tenant
) -> None:
    proxy = behind(api.port)
    good = tenant.token("viewer")

    with (
        ThreadPoolExecutor(8) as pool,
        # Threads that begin at once have HTTP/2 of httpx leave connections unclosed.
        client_of(proxy.url, proxy.authority, "", MALLORY, http2=False) as mallory,
        client_of(proxy.url, proxy.authority, good) as alice,
    ):
        flood = [
            pool.submit(mallory.get, ASSETS, headers=bearer(altered(good, number)))
            for number in range(400)
        ]
        eventually(lambda: any(each.done() and each.result().status_code == 429 for each in flood))
        answer = alice.get(ASSETS)
        told = {each.result().status_code for each in flood}

    assert answer.status_code == 200, answer.text
    assert told == {401, 429}


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def altered(token: str, number: int) -> str:
    """Return a token like another one, of no signature: a look alone does not tell it apart."""
    head, body, _ = token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(body + "=="))
    other = json.dumps({**claims, "jti": str(number)}).encode()
    return f"{head}.{base64.urlsafe_b64encode(other).decode().rstrip('=')}.{'x' * 40}"


def test_the_apis_own_limits_are_told_through_it(
    api: ApiProcess, behind: Behind, tenant: Tenant
) -> None:
    proxy = behind(api.port)
    many = {f"X-Many-{number}": "a" * 6_000 for number in range(4)}

    with client_of(proxy.url, proxy.authority, tenant.token("dispatcher")) as alice:
        for size in (65_537, 200_000, 1_000_000):
            key = {"Idempotency-Key": f"too-large-{size}", "Content-Type": "application/json"}
            problem(alice.post(ORDERS, content=b" " * size, headers=key), 413, "too-large")
        problem(alice.get(ASSETS, headers=many), 413, "too-large")
        problem(alice.get(f"{ASSETS}?limit={'1' * 5_000}"), 413, "too-large")
        assert alice.get(ASSETS).status_code == 200


def test_connections_to_the_api_are_kept_and_made_anew_when_they_are_cut(
    api: ApiProcess, behind: Behind, tenant: Tenant
) -> None:
    with CutProxy(f"https://127.0.0.1:{api.port}") as way:
        proxy = behind(way.port)
        with client_of(proxy.url, proxy.authority, tenant.token("viewer")) as alice:
            assert {alice.get(ASSETS).status_code for _ in range(100)} == {200}
            assert way.taken == 1

            way.cut()

            assert {alice.get(ASSETS).status_code for _ in range(10)} == {200}
            assert way.taken == 2


@pytest.mark.parametrize(
    ("patience", "status"),
    [
        pytest.param({}, 502, id="cut"),
        pytest.param({"proxy_read_timeout": "1s"}, 504, id="given up by the proxy"),
    ],
)
def test_an_answer_that_the_proxy_did_not_get_is_asked_for_again(
    api: ApiProcess,
    behind: Behind,
    tenant: Tenant,
    kube: ControlPlane,
    patience: dict[str, str],
    status: int,
) -> None:
    key = {"Idempotency-Key": f"unanswered-{status}"}
    with CutProxy(f"https://127.0.0.1:{api.port}") as way, ThreadPoolExecutor(1) as pool:
        proxy = behind(way.port, settings=patience)
        with client_of(proxy.url, proxy.authority, tenant.token("dispatcher")) as alice:
            assert alice.get(ORDERS).status_code == 200  # no handshake gets through what holds
            before = creates(kube)
            way.hold()
            lost = pool.submit(alice.post, ORDERS, json=ORDER, headers=key)
            assert way.held.wait(60)
            way.pass_to_server()
            eventually(lambda: len(creates(kube)) > len(before))
            if not patience:
                way.cut()
            unanswered = lost.result()
            way.pass_on()

            again = alice.post(ORDERS, json=ORDER, headers=key)

    assert unanswered.status_code == status
    assert (again.status_code, again.headers["idempotency-replayed"]) == (200, "true")
    assert creates(kube) == [*before, again.json()["name"]]


def test_a_proxy_that_repeats_orders_itself_at_another_replica_makes_one(
    start_api: StartApi,
    settings: dict[str, str],
    behind: Behind,
    tenant: Tenant,
    kube: ControlPlane,
) -> None:
    first, second = (start_api(replica=each, **settings) for each in ("api-0", "api-1"))
    key = {"Idempotency-Key": "repeated-by-the-proxy"}
    with CutProxy(f"https://127.0.0.1:{first.port}") as way, ThreadPoolExecutor(1) as pool:
        repeats = {"proxy_next_upstream": "error timeout non_idempotent"}
        proxy = behind(way.port, second.port, settings=repeats)
        with client_of(proxy.url, proxy.authority, tenant.token("dispatcher")) as alice:
            assert {alice.get(ORDERS).status_code for _ in range(2)} == {200}  # one at each
            assert way.taken == 1
            before = creates(kube)
            way.hold()
            answer = pool.submit(alice.post, ORDERS, json=ORDER, headers=key)
            assert way.held.wait(60)
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
    start_api: StartApi, settings: dict[str, str], behind: Behind, tenant: Tenant
) -> None:
    first, second = (start_api(replica=each, **settings) for each in ("api-0", "api-1"))
    proxy = behind(first.port, second.port)

    with client_of(proxy.url, proxy.authority, tenant.token("viewer")) as alice:
        assert {alice.get(ASSETS).status_code for _ in range(20)} == {200}
        assert first.process.terminate() == 0
        assert {alice.get(ASSETS).status_code for _ in range(20)} == {200}


@pytest.mark.parametrize("wrong", ["name", "authority"])
def test_the_proxy_takes_no_other_certificate_for_the_apis(
    api: ApiProcess, behind: Behind, tenant: Tenant, wrong: str
) -> None:
    trust = {
        "name": {"upstream_name": NAME},
        "authority": {"upstream_authority": Authority("server").pem.decode()},
    }[wrong]
    proxy = behind(api.port, **trust)

    with client_of(proxy.url, proxy.authority, tenant.token("viewer")) as alice:
        assert alice.get(ASSETS).status_code == 502
    assert "upstream SSL certificate" in proxy.log
