"""Attacks on the API by whoever stands for the API server, or makes it silent."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kubernetes.aio import client as kubernetes
from tests.waiting import until

from derops.observability import Readiness
from derops_headend.api import reviews as module
from derops_headend.api.caller import Caller, CallerKind
from derops_headend.api.callers.kubernetes import (
    MOST_NAME_CHARACTERS,
    REVIEWS_AT_ONCE,
    VALID_SECONDS,
    KubernetesTokens,
)
from derops_headend.api.kube import Kube
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.reviews import ACCESS_REVIEWS, TOKEN_REVIEWS, Reviews
from derops_headend.api.rights import ReviewedRights
from derops_operator.resources.dispatches import CREATOR_LIMIT

ANNA = Caller(kind=CallerKind.KUBERNETES, name="anna", groups=("traders",))


def part(claims: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")


def make(number: int = 0, **claims: Any) -> str:
    ends = datetime.now(UTC) + timedelta(hours=1)
    known = {"iss": "https://cluster", "aud": ["derops-api"], "exp": int(ends.timestamp())}
    return f"{part({'alg': 'RS256'})}.{part(known | claims)}.{number}"


class Server:
    """A false API server: it answers each review alike."""

    def __init__(self) -> None:
        self.status, self.answer = 201, dict[str, Any]()
        self.asked: list[Any] = []
        self.delay = 0.0
        self.at_once = self.most_at_once = 0

    async def handle(self, request: web.Request) -> web.Response:
        self.asked.append(await request.json())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(self.delay)
        self.at_once -= 1
        return web.json_response({"status": self.answer}, status=self.status)


@pytest.fixture
async def server() -> AsyncIterator[tuple[Server, Reviews]]:
    false = Server()
    app = web.Application()
    app.router.add_post("/{rest:.*}", false.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    configuration = kubernetes.Configuration(host=f"http://127.0.0.1:{port}")
    reviews = Reviews(configuration, Readiness())
    yield false, reviews
    await reviews.close()
    await runner.cleanup()


def authenticated(**changes: Any) -> dict[str, Any]:
    user = {"username": "anna", "groups": ["traders"], "uid": "7"}
    return {"authenticated": True, "audiences": ["derops-api"], "user": user} | changes


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"authenticated": False},
        authenticated(audiences=None),
        authenticated(audiences=[]),
        authenticated(audiences=["https://kubernetes.default.svc"]),
        authenticated(authenticated="true"),
        authenticated(user={}),
        authenticated(user={"username": "a b"}),
        authenticated(user={"username": "a\nb"}),
        authenticated(user={"username": "a" * 257}),
        authenticated(user={"username": "anna", "groups": [""]}),
        authenticated(user={"username": "anna", "groups": [7]}),
        authenticated(user={"username": "anna", "groups": [f"g{n}" for n in range(201)]}),
    ],
)
async def test_a_review_that_is_not_wholly_for_us(
    server: tuple[Server, Reviews], answer: dict[str, Any]
) -> None:
    """R47: an authenticator that knows no audiences lets in a token that was made for others."""
    false, reviews = server
    tokens = KubernetesTokens(reviews, "derops-api")
    false.answer = answer
    assert await tokens.caller_of(make(), "192.0.2.1") is None

    false.answer = authenticated()
    caller = await tokens.caller_of(make(1), "192.0.2.1")
    assert caller is not None
    assert (caller.name, caller.uid, caller.groups) == ("anna", "7", ("traders",))


async def test_an_api_server_that_fails_or_is_slow_lets_nobody_in(
    server: tuple[Server, Reviews], monkeypatch: pytest.MonkeyPatch
) -> None:
    """R62: the API server is made to fail, so that the API guesses."""
    false, reviews = server
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.3)
    tokens, rights = KubernetesTokens(reviews, "derops-api"), ReviewedRights(reviews)
    false.answer = authenticated() | {"allowed": True}
    for status, delay in ((500, 0.0), (403, 0.0), (429, 0.0), (201, 1.0)):
        false.status, false.delay = status, delay
        for asked in (
            tokens.caller_of(make(status), "192.0.2.1"),
            rights.decide(ANNA, "get", "derassets", "a"),
        ):
            with pytest.raises(ProblemError) as refused:
                await asked
            assert refused.value.slug is Slug.KUBERNETES_UNAVAILABLE
            assert refused.value.retry_after_seconds == 5


async def test_reviews_are_few_at_a_time_and_each_token_is_asked_for_once(
    server: tuple[Server, Reviews],
) -> None:
    false, reviews = server
    tokens = KubernetesTokens(reviews, "derops-api")
    false.answer, false.delay = authenticated(), 0.05

    found = await asyncio.gather(
        *(tokens.caller_of(make(number % 40), "192.0.2.1") for number in range(200))
    )

    assert {caller.name for caller in found if caller} == {"anna"}
    assert len(false.asked) == 40
    assert 1 < false.most_at_once < TOKEN_REVIEWS / 2


async def test_an_answer_is_believed_for_its_time(server: tuple[Server, Reviews]) -> None:
    false, reviews = server
    now = [0.0]
    tokens = KubernetesTokens(reviews, "derops-api", lambda: now[0])
    rights = ReviewedRights(reviews, lambda: now[0])

    async def asks(token: str = "", *, fresh: bool = False) -> int:
        before = len(false.asked)
        if token:
            await tokens.caller_of(token, "192.0.2.1")
        else:
            await rights.decide(ANNA, "get", "derassets", "a", fresh=fresh)
        return len(false.asked) - before

    for answer, allowed in ((authenticated(), 30), ({}, 5)):
        false.answer, token = answer, make(allowed)
        now[0] += 100
        assert [await asks(token), await asks(token)] == [1, 0]
        now[0] += allowed - 0.1
        assert await asks(token) == 0
        now[0] += 0.2
        assert await asks(token) == 1
    for is_allowed, believed in ((True, 10), (False, 3)):
        false.answer = {"allowed": is_allowed}
        now[0] += 100
        assert [await asks(), await asks(), await asks(fresh=True)] == [1, 0, 1]
        now[0] += believed - 0.1
        assert await asks() == 0
        now[0] += 0.2
        assert await asks() == 1


async def test_namespaces_are_asked_for_at_once_or_one_by_one(
    server: tuple[Server, Reviews],
) -> None:
    false, reviews = server
    rights = ReviewedRights(reviews)
    many = [f"ns-{number}" for number in range(100)]
    false.answer = {"allowed": True}
    assert await rights.namespaces(ANNA, "list", "derassets", many) == many
    assert [each["spec"]["resourceAttributes"]["namespace"] for each in false.asked] == [""]

    other = ReviewedRights(reviews)
    false.answer, false.delay = {"allowed": False}, 0.01
    assert await other.namespaces(ANNA, "list", "derassets", many) == []
    assert len(false.asked) == 102
    assert false.most_at_once < ACCESS_REVIEWS / 2
    spec = false.asked[-1]["spec"]
    assert (spec["user"], spec["groups"]) == ("anna", ["traders"])


async def test_a_tenant_that_asks_for_all_assets_all_the_time(
    server: tuple[Server, Reviews],
) -> None:
    """R123: each of many tokens has the API ask for each namespace; others wait to order."""
    false, reviews = server
    false.answer, false.delay = {"allowed": False}, 0.02
    rights = ReviewedRights(reviews)
    many = [f"ns-{number}" for number in range(300)]
    accounts = [
        Caller(kind=CallerKind.KUBERNETES, name=f"system:serviceaccount:evil:a{number}")
        for number in range(30)
    ]
    flood = [
        asyncio.create_task(rights.namespaces(each, "list", "derassets", many)) for each in accounts
    ]
    # Each has asked once for all namespaces by then, and asks for every one.
    await until(lambda: len(false.asked) > 2 * len(accounts))

    before = len(false.asked)
    await rights.decide(ANNA, "create", "dispatches", "a", fresh=True)
    hers = next(at for at, each in enumerate(false.asked) if each["spec"]["user"] == ANNA.name)
    assert hers - before <= 10 * ACCESS_REVIEWS, "they went before her"
    assert not any(each.done() for each in flood)

    for each in flood:
        each.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


async def test_strangers_leave_room_for_tokens_that_are_known(
    server: tuple[Server, Reviews],
) -> None:
    """R144: tokens that look like ours come from everywhere, while known ones are asked for again.

    The word on a token is believed for 30 s. The API server is slow to refuse.
    """
    false, reviews = server
    now = [0.0]
    tokens = KubernetesTokens(reviews, "derops-api", lambda: now[0])
    false.answer = authenticated()
    known = make(0)
    assert await tokens.caller_of(known, "192.0.2.1") is not None
    now[0] = VALID_SECONDS + 1
    false.delay = 1.0
    flood = [
        asyncio.create_task(tokens.caller_of(make(number), f"198.51.100.{number % 200}"))
        for number in range(1, 1000)
    ]
    while false.at_once < TOKEN_REVIEWS:
        await asyncio.sleep(0.01)

    begun = len(false.asked)
    assert await tokens.caller_of(known, "192.0.2.1") is not None
    assert len(false.asked) - begun <= 2 * TOKEN_REVIEWS, "others were asked for before"

    for each in flood:
        each.cancel()
    await asyncio.gather(*flood, return_exceptions=True)


async def test_a_stranger_with_many_addresses_is_one_source(
    server: tuple[Server, Reviews],
) -> None:
    """R145: whoever has a network of IPv6 shows each new token from another address of it."""
    false, reviews = server
    tokens = KubernetesTokens(reviews, "derops-api", lambda: 0.0)
    answers = await asyncio.gather(
        *(tokens.caller_of(make(number), f"2001:db8::{number:x}") for number in range(300)),
        return_exceptions=True,
    )
    assert len(false.asked) == REVIEWS_AT_ONCE
    assert sum(isinstance(each, ProblemError) for each in answers) == 300 - REVIEWS_AT_ONCE


@pytest.mark.parametrize(
    "told", [b"", b'{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"7"}}}\n']
)
async def test_a_watch_that_is_ended_early_tells_nothing(told: bytes) -> None:
    """R124: whoever is between ends the watch, or the API server stops: nobody knows what was."""

    async def answer(request: web.Request) -> web.Response:
        if "watch" in request.query:
            return web.Response(body=told)
        return web.json_response({"items": [], "metadata": {"resourceVersion": "9"}})

    app = web.Application()
    app.router.add_get("/{rest:.*}", answer)
    async with TestServer(app) as server:
        opened = Kube(kubernetes.Configuration(host=str(server.make_url(""))), Readiness())
        try:
            with pytest.raises(ProblemError) as refused:
                await opened.life_of("a", "peak", "5")
        finally:
            await opened.close()
    assert refused.value.slug is Slug.KUBERNETES_UNAVAILABLE


@pytest.mark.parametrize(
    "user",
    [
        {"username": "x" * (MOST_NAME_CHARACTERS + 1)},
        {"username": "Zoë"},
        {"username": ""},
        {"username": "zoe", "groups": ["x" * (MOST_NAME_CHARACTERS + 1)]},
    ],
    ids=["long", "not ASCII", "empty", "long group"],
)
async def test_who_has_a_name_that_cannot_be_told_is_not_let_in_and_the_log_says_why(
    server: tuple[Server, Reviews], user: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """R167: an order is announced in a name that its annotation cannot hold, and never made."""
    false, reviews = server
    false.answer = {"authenticated": True, "audiences": ["derops-api"], "user": user}

    assert await KubernetesTokens(reviews, "derops-api").caller_of(make(), "source") is None

    logged = capsys.readouterr().out
    assert "caller.refused" in logged
    assert (
        f"visible ASCII characters, but of {len((user.get('groups') or [user['username']])[0])}"
        in logged
    )
    assert "x" * 65 not in logged


async def test_a_name_of_256_characters_is_let_in_and_fits_wherever_it_is_told(
    server: tuple[Server, Reviews],
) -> None:
    false, reviews = server
    user = {"username": "x" * MOST_NAME_CHARACTERS}
    false.answer = {"authenticated": True, "audiences": ["derops-api"], "user": user}

    caller = await KubernetesTokens(reviews, "derops-api").caller_of(make(), "source")

    assert caller is not None
    assert len(caller.name) == MOST_NAME_CHARACTERS <= CREATOR_LIMIT
