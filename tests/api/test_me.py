"""Who the caller is, and may what: as Kubernetes says."""

import base64
import json

import httpx
import pytest
from tests.api.rig import ApiProcess, Tenant, problem


def test_the_caller_is_who_kubernetes_says(dispatcher: httpx.Client) -> None:
    answer = dispatcher.get("/v1/me")

    assert answer.status_code == 200, answer.text
    me = answer.json()
    assert me["kind"] == "Kubernetes"
    assert me["name"] == "system:serviceaccount:tenant-a:dispatcher"
    assert "system:serviceaccounts:tenant-a" in me["groups"]
    assert me["tokenId"].startswith("JTI=")
    assert me["expiresAt"].endswith("Z")


def test_the_rights_are_those_of_the_role(dispatcher: httpx.Client) -> None:
    own = dispatcher.get("/v1/me/rights", params={"namespace": "tenant-a"}).json()
    foreign = dispatcher.get("/v1/me/rights", params={"namespace": "tenant-b"}).json()

    allowed = {(each["verb"], each["resource"]) for each in own["rights"] if each["allowed"]}
    assert ("create", "dispatches") in allowed
    assert ("get", "derassets/telemetry") in allowed
    assert ("list", "audits") not in allowed
    assert not any(each["allowed"] for each in foreign["rights"])


def test_who_has_no_right_still_is_somebody(api: ApiProcess, tenant_a: Tenant) -> None:
    with api.client(tenant_a.token("nobody")) as client:
        assert client.get("/v1/me").status_code == 200
        rights = client.get("/v1/me/rights", params={"namespace": "tenant-a"}).json()["rights"]

    assert len(rights) == 10
    assert not any(each["allowed"] for each in rights)


def test_a_namespace_that_can_be_none_is_refused(dispatcher: httpx.Client) -> None:
    for namespace in ("", "Upper", "a" * 64, "-a", "a/b", "..", "a\x00"):
        answer = dispatcher.get("/v1/me/rights", params={"namespace": namespace})

        body = problem(answer, 422, "invalid")
        assert body["errors"][0]["parameter"] == "namespace"
        assert len(namespace) < 4 or namespace not in answer.text


def over(token: str) -> str:
    """Return a token that says it ended; its signature no longer fits, so it is nobody's."""
    head, claims, signature = token.split(".")
    said = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    changed = base64.urlsafe_b64encode(json.dumps({**said, "exp": said["iat"] - 1}).encode())
    return f"{head}.{changed.decode().rstrip('=')}.{signature}"


@pytest.mark.parametrize("code", ["missing", "audience", "expired", "invalid"])
def test_a_refused_token_is_told_what_it_shows_itself(
    api: ApiProcess, tenant_a: Tenant, code: str
) -> None:
    token = {
        "missing": None,
        "audience": tenant_a.token("viewer", audience="other"),
        "expired": over(tenant_a.token("viewer")),
        "invalid": f"{tenant_a.token('viewer')}A",
    }[code]
    counter = f'derops_api_refused_strangers_total{{why="{code}"}}'

    def counted() -> float:
        lines = httpx.get(f"http://127.0.0.1:{api.ops_port}/metrics").text.splitlines()
        return float(next((each.split()[1] for each in lines if each.startswith(counter)), 0))

    before = counted()
    with api.client(token) as client:
        answer = client.get("/v1/me")

    (fault,) = problem(answer, 401, "unauthenticated")["errors"]
    assert (fault["parameter"], fault["code"]) == ("Authorization", code)
    assert ("invalid_token" in answer.headers["www-authenticate"]) is (code != "missing")
    assert counted() == before + 1
