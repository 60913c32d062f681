"""What is answered where nothing can be written down, and what goes wrong within."""

import json
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import StreamingResponse

from derops_headend.api import limits
from derops_headend.api.application import make_application
from derops_headend.api.call import Call
from derops_headend.api.caller import Caller, CallerKind
from derops_headend.api.models import Model
from derops_headend.api.outer import Outer
from derops_headend.api.problems import ProblemError, Slug

ANNA = Caller(kind=CallerKind.KUBERNETES, name="anna")
router = APIRouter()


class Order(Model):
    """Something to send."""

    watts: int
    parts: list[int] = []


@router.get("/v1/thing")
async def get_thing() -> dict[str, str]:
    return {"thing": "here"}


@router.get("/v1/rows")
async def get_rows(count: int) -> StreamingResponse:
    return StreamingResponse((b"a" * 10_000 for _ in range(count)), media_type="text/csv")


@router.post("/v1/thing")
async def make_thing(request: Request, order: Order) -> dict[str, int]:
    request.state.call.is_announced = True
    return {"watts": order.watts}


@router.post("/v1/thing/again")
async def make_nothing() -> dict[str, int]:
    return {"watts": 0}


@router.post("/v1/thing/away")
async def make_nothing_for_now() -> None:
    raise ProblemError(Slug.KUBERNETES_UNAVAILABLE, "away", retry_after_seconds=1)


@router.get("/v1/fault")
async def fault() -> None:
    raise RuntimeError("the password is hunter2")


@router.get("/v1/rows/fault")
async def rows_and_fault() -> StreamingResponse:
    def rows() -> Any:
        yield b"a" * 100_000
        raise RuntimeError("in the middle")

    return StreamingResponse(rows())


class Written:
    """An audit that takes records, or none."""

    def __init__(self) -> None:
        self.takes = True
        self.records: list[tuple[str, int, str, int]] = []
        self.refusals: list[tuple[str, str]] = []
        self.held: list[tuple[str, str, int]] = []

    async def complete(self, call: Call, status: int, reason: str, sent_bytes: int) -> None:
        if not self.takes:
            raise ProblemError(Slug.AUDIT_UNAVAILABLE, "full", retry_after_seconds=10)
        self.records.append((call.path, status, reason, sent_bytes))

    async def refused(self, source: str, reason: str, method: str, path: str) -> None:
        self.refusals.append((reason, path))

    async def held_back(self, call: Call, status: int, reason: str) -> None:
        self.held.append((call.caller.name, call.subject.namespace, status))


@pytest.fixture
def audit() -> Written:
    return Written()


@pytest.fixture
async def client(audit: Written) -> Any:
    async def authenticate(token: str, source: str) -> Caller | None:
        return ANNA if token == "good" else None

    outer = Outer(
        make_application(None, [router]),
        authenticate,
        audit,  # type: ignore[arg-type]  # routes ask for more
        (),
        lambda: datetime.now(UTC),
    )
    transport = httpx.ASGITransport(app=outer)
    headers = {"Authorization": "Bearer good"}
    async with httpx.AsyncClient(
        transport=transport, base_url="http://x", headers=headers
    ) as client:
        yield client


def slug(answer: httpx.Response) -> str:
    assert answer.headers["content-type"] == "application/problem+json"
    return str(json.loads(answer.content)["type"]).rpartition("/")[2]


async def test_each_answer_has_one_record(client: httpx.AsyncClient, audit: Written) -> None:
    for path in ("/v1/thing", "/v1/rows?count=3", "/v1/rows?count=30", "/v1/no", "/v1/fault"):
        answer = await client.get(path)
        assert answer.headers["x-request-id"]
        assert audit.records[-1][1:2] == (answer.status_code,)
        assert audit.records[-1][3] == len(answer.content)
    await client.get("/v1/thing", headers={"Authorization": "Bearer bad"})

    assert [(path, status, reason) for path, status, reason, _ in audit.records] == [
        ("/v1/thing", 200, ""),
        ("/v1/rows", 200, ""),
        ("/v1/rows", 200, ""),
        ("/v1/no", 404, "not-found"),
        ("/v1/fault", 500, "internal"),
    ]
    assert audit.refusals == [("unauthenticated", "/v1/thing")]


@pytest.mark.parametrize("path", ["/v1/thing", "/v1/rows?count=3", "/v1/no", "/v1/fault"])
async def test_a_read_without_a_record_is_not_answered(
    client: httpx.AsyncClient, audit: Written, path: str
) -> None:
    """Records are kept from being written, so that reads leave no trace."""
    audit.takes = False

    answer = await client.get(path)

    assert (answer.status_code, slug(answer)) == (503, "audit-unavailable")
    assert answer.headers["retry-after"] == "10"
    assert b"here" not in answer.content
    assert b"aaa" not in answer.content


async def test_a_long_answer_without_a_record_has_no_end(audit: Written) -> None:
    audit.takes = False
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def authenticate(token: str, source: str) -> Caller | None:
        return ANNA

    outer = Outer(
        make_application(None, [router]),
        authenticate,
        audit,  # type: ignore[arg-type]
        (),
        lambda: datetime.now(UTC),
    )
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/v1/rows",
        "raw_path": b"/v1/rows",
        "query_string": b"count=30",
        "root_path": "",
        "headers": [(b"authorization", b"Bearer good")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
    }
    await outer(scope, receive, send)

    assert sent[0]["status"] == 200
    assert all(message.get("more_body") for message in sent[1:])


@pytest.mark.parametrize("path", ["/v1/thing/again", "/v1/thing/away"])
async def test_a_write_that_was_not_announced_is_not_answered_without_a_record(
    client: httpx.AsyncClient, audit: Written, path: str
) -> None:
    audit.takes = False

    answer = await client.post(path)

    assert (answer.status_code, slug(answer)) == (503, "audit-unavailable")


async def test_what_was_done_is_told_also_without_its_second_record(
    client: httpx.AsyncClient, audit: Written
) -> None:
    audit.takes = False

    done = await client.post("/v1/thing", json={"watts": 5})
    refused = await client.post("/v1/thing", json={"watts": "5"})

    assert (done.status_code, done.json()) == (200, {"watts": 5})
    assert slug(refused) == "audit-unavailable"


async def test_a_fault_tells_nothing_but_the_requests_id(client: httpx.AsyncClient) -> None:
    answer = await client.get("/v1/fault")

    assert (answer.status_code, slug(answer)) == (500, "internal")
    assert "hunter2" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"watts": "5"}, ("/watts", "int_type")),
        ({"watts": 5.5}, ("/watts", "int_type")),
        ({"watts": True}, ("/watts", "int_type")),
        ({}, ("/watts", "missing")),
        ({"watts": 1, "parts": [1, "x"]}, ("/parts/1", "int_type")),
        ({"watts": 1, "wats": 1}, ("/wats", "extra_forbidden")),
        ({"watts": 1, "<b>\n": 1}, ("", "extra_forbidden")),
        ({"watts": 1, "k" * 65: 1}, ("", "extra_forbidden")),
        ([], ("", "model_attributes_type")),
    ],
)
async def test_a_body_is_refused_with_a_pointer_and_without_what_was_sent(
    client: httpx.AsyncClient, body: Any, expected: tuple[str, str]
) -> None:
    answer = await client.post("/v1/thing", json=body)

    assert (answer.status_code, slug(answer)) == (422, "invalid")
    told = answer.json()["errors"]
    assert (told[0]["pointer"], told[0]["code"]) == expected
    assert "<b>" not in answer.text
    assert "kkkk" not in answer.text


async def test_a_thousand_faults_are_told_in_part(client: httpx.AsyncClient) -> None:
    answer = await client.post("/v1/thing", json={f"k{n}": n for n in range(2000)})

    assert answer.status_code == 422
    assert len(answer.json()["errors"]) == 20


@pytest.mark.parametrize(
    "body", [b"{", b"\xff", b"[" * 60_000, b'{"watts": NaN}', b'{"watts": 1e999}']
)
async def test_what_is_no_json_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    answer = await client.post(
        "/v1/thing", content=body, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code in (400, 422)
    assert slug(answer) in ("bad-request", "invalid")


@pytest.mark.parametrize(
    ("query", "parameter"),
    [("count=3&cuont=4", "query"), ("count=3&count=4", "count"), ("count=3&%00=1", "query")],
)
async def test_a_query_has_what_the_operation_knows_and_has_it_once(
    client: httpx.AsyncClient, query: str, parameter: str
) -> None:
    answer = await client.get(f"/v1/rows?{query}")

    assert (answer.status_code, slug(answer)) == (422, "invalid")
    assert json.loads(answer.content)["errors"][0]["parameter"] == parameter


async def test_a_call_too_many_is_the_callers_and_about_a_namespace(
    audit: Written, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "CALLS_OF_ONE_AT_ONCE", 0)

    answer = await client.get("/v1/namespaces/pilot-north/assets")

    assert answer.status_code == 429
    assert audit.held == [(ANNA.name, "pilot-north", 429)]
    assert (audit.records, audit.refusals) == ([], [])
