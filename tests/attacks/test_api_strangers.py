"""Attacks on the API by whoever has no token, or one that is not for it."""

import json
import socket

import httpx
import pytest
from tests.api.fixtures import StartApi
from tests.api.rig import AUDIENCE, ApiProcess, Tenant, make_token, problem
from tests.stack.controlplane import ControlPlane
from tests.stack.ops import metric

PATHS = ["/", "/v1/me", "/v1/openapi.json", "/v1/nothing", "//v1/me", "/v1/../auth", "/metrics"]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


@pytest.mark.parametrize("method", METHODS)
def test_a_stranger_learns_nothing(api: ApiProcess, method: str) -> None:
    """R40: a stranger tries each method on paths that are there and that are not."""
    told = set()
    with api.client() as client:
        for path in PATHS:
            answer = client.request(method, path)
            assert answer.status_code == 401, (path, answer.text)
            assert answer.headers["www-authenticate"] == 'Bearer realm="derops"'
            assert "allow" not in answer.headers
            told.add(answer.text.replace(answer.headers["x-request-id"], ""))

    assert len(told) == 1


def test_a_caller_learns_which_methods_a_path_knows(dispatcher: httpx.Client) -> None:
    answer = dispatcher.delete("/v1/me")

    problem(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "GET"
    problem(dispatcher.get("/v1/nothing"), 404, "not-found")


def raw(api: ApiProcess, head: bytes) -> bytes:
    """Send bytes, and return all that comes back until the end."""
    with socket.create_connection(("127.0.0.1", api.port), timeout=60) as connection:
        connection.sendall(head)
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
        return received


def test_only_one_header_of_one_form_shows_a_token(api: ApiProcess, tenant_a: Tenant) -> None:
    """R41: a token comes twice, elsewhere, or in a form that another program may read otherwise."""
    token = tenant_a.token("viewer")
    good = f"Authorization: Bearer {token}"
    rest = "Host: x\r\nConnection: close\r\n\r\n"
    tries = {
        f"{good}\r\n": 200,
        f"authorization: bearer {token}\r\n": 200,
        f"{good}\r\n{good}\r\n": 401,
        f"{good}\r\nAuthorization: Basic eDp5\r\n": 401,
        f"Authorization: Bearer\t{token}\r\n": 401,
        f"Authorization: Bearer  {token}\r\n": 401,
        f"Authorization: BEARER {token}\r\n": 401,
        f"Authorization: Bearer {token}==\r\n": 401,
        f"Authorization: Bearer {token},{token}\r\n": 401,
        f"Authorization: Bearer {'a' * 9000}\r\n": 401,
        "Authorization: Bearer \u0661\u0662.a.b\r\n": 401,
        f"Authorization: Basic {token}\r\n": 401,
        f"X-Authorization: Bearer {token}\r\n": 401,
        f"{good}\r\nCookie: a=b\r\n": 400,
        f"Authorization: Bearer {token}\x00\r\n": 400,
    }

    for headers, status in tries.items():
        answer = raw(api, f"GET /v1/me HTTP/1.1\r\n{headers}{rest}".encode())
        assert int(answer.split(b" ")[1]) == status, headers
    answer = raw(api, f"GET /v1/me?access_token={token} HTTP/1.1\r\n{rest}".encode())
    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize("audience", [None, "https://kubernetes.default.svc", "derops-api2"])
def test_a_token_for_somebody_else_is_refused(
    api: ApiProcess, tenant_a: Tenant, audience: str | None
) -> None:
    """R42: a token that was made for the cluster, or for another service, is carried to the API."""
    token = make_token(tenant_a.kube, tenant_a.namespace, "viewer", audience)

    with api.client(token) as client:
        problem(client.get("/v1/me"), 401, "unauthenticated")


def test_a_token_of_an_account_that_is_gone_is_refused(
    start_api: StartApi, kube: ControlPlane, tenant_a: Tenant
) -> None:
    """R43: a token is used whose ServiceAccount is deleted."""
    kube.kubectl("create", "serviceaccount", "leaver", "-n", tenant_a.namespace)
    token = make_token(kube, tenant_a.namespace, "leaver")
    kube.kubectl("delete", "serviceaccount", "leaver", "-n", tenant_a.namespace)

    with start_api().client(token) as client:
        problem(client.get("/v1/me"), 401, "unauthenticated")


def test_junk_is_refused_without_a_question_to_kubernetes(start_api: StartApi) -> None:
    """R44: tokens that cannot be ours are to keep the API server busy."""
    api = start_api()
    before = reviews(api)

    for token in ("junk", "a.b.c", "e30.e30.e30", "a." * 4000, "..", "drp_a.b"):
        with api.client(token) as client:
            problem(client.get("/v1/me"), 401, "unauthenticated")

    assert reviews(api) - before < 6  # what the program asks for itself


def reviews(api: ApiProcess) -> float:
    return metric(api.ops_port, "derops_api_review_seconds_count")


def test_a_forged_token_with_the_right_claims_is_refused(api: ApiProcess, tenant_a: Tenant) -> None:
    """R45: a token with somebody's claims has the signature of another."""
    head, claims, signature = tenant_a.token("viewer").split(".")
    other = tenant_a.token("dispatcher").split(".")

    for forged in (f"{head}.{claims}.{other[2]}", f"{head}.{other[1]}.{signature}"):
        with api.client(forged) as client:
            problem(client.get("/v1/me"), 401, "unauthenticated")


def test_nobody_becomes_another_by_headers(dispatcher: httpx.Client) -> None:
    """R46: a caller names somebody else in headers that proxies and Kubernetes know."""
    name = dispatcher.get("/v1/me").json()["name"]

    answer = dispatcher.get(
        "/v1/me",
        headers={
            "Impersonate-User": "system:admin",
            "Impersonate-Group": "system:masters",
            "X-Remote-User": "root",
            "X-Remote-Group": "system:masters",
            "X-Forwarded-User": "root",
            "X-Original-URL": "/v1/openapi.json",
            "X-Rewrite-URL": "/v1/openapi.json",
            "X-HTTP-Method-Override": "DELETE",
            "X-Request-Id": "mine",
        },
    )

    assert answer.json()["name"] == name
    assert answer.headers["x-request-id"] != "mine"
    assert "paths" not in json.loads(answer.text)
    assert AUDIENCE not in answer.text
