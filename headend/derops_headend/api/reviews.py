"""Questions to the API server about callers: whose token it is, and what a caller may do."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import aiohttp
from kubernetes.aio import client

from derops.observability import Readiness
from derops_headend.api import metrics
from derops_headend.api.caller import Caller
from derops_headend.api.connection import send
from derops_headend.api.ports import Decision
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.shares import Places

TOKEN_REVIEWS, KNOWN_TOKEN_REVIEWS, ACCESS_REVIEWS = 8, 8, 20
"""The most questions at a time: about tokens that were never good, shared by sources; about tokens
that were good, and about rights, both shared by callers. None uses up the connections of another.
"""

ANSWER_SECONDS = 5.0
RETRY_SECONDS = 5
LOOK_SECONDS = 10.0

_PART = "kubernetes"

_FAILURES = (aiohttp.ClientError, OSError, TimeoutError, ValueError, KeyError)


class Reviews:
    """Asks the API server. Make it inside the event loop; ``close`` it there."""

    def __init__(self, configuration: client.Configuration, readiness: Readiness) -> None:
        """Take a configuration that nobody else has: the size of its pool is set here."""
        readiness.expecting(_PART, "not asked yet")
        self._readiness = readiness
        configuration.connection_pool_maxsize = TOKEN_REVIEWS + KNOWN_TOKEN_REVIEWS + ACCESS_REVIEWS
        self._client = client.ApiClient(configuration)
        self._tokens, self._known_tokens = Places(TOKEN_REVIEWS), Places(KNOWN_TOKEN_REVIEWS)
        self._accesses = Places(ACCESS_REVIEWS)
        self._issuer = ""

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def review_token(
        self, token: str, audience: str, source: str, share: str | None
    ) -> dict[str, Any]:
        """Return the status of a TokenReview.

        Args:
            token: The token as it was sent.
            audience: The audience of this API.
            source: The network that it came from.
            share: The share of the caller whose it was before; None = it never was good.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE.
        """
        place = self._tokens.hold(source) if share is None else self._known_tokens.hold(share)
        async with place:
            return await self._create(
                "authentication.k8s.io/v1",
                "TokenReview",
                {"token": token, "audiences": [audience]},
            )

    async def review_access(
        self, caller: Caller, verb: str, resource: str, namespace: str, name: str
    ) -> Decision:
        """Return whether RBAC lets a caller; an empty ``namespace`` means all of them.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE.
        """
        kind, _, subresource = resource.partition("/")
        spec = {
            "user": caller.name,
            "uid": caller.uid,
            "groups": list(caller.groups),
            "extra": {key: list(values) for key, values in caller.extra.items()},
            "resourceAttributes": {
                "group": "derops.io",
                "resource": kind,
                "subresource": subresource,
                "verb": verb,
                "namespace": namespace,
                "name": name,
            },
        }
        async with self._accesses.hold(caller.share):
            status = await self._create("authorization.k8s.io/v1", "SubjectAccessReview", spec)
        return Decision(status.get("allowed") is True, str(status.get("reason", "")))

    @property
    def issuer(self) -> str:
        """Who signs the tokens of this cluster; empty = the cluster does not tell."""
        return self._issuer

    async def follow(self) -> None:
        """Learn who signs tokens, and whether the API server answers, until cancelled."""
        while True:
            with suppress(ProblemError):
                await self._learn()
            await asyncio.sleep(LOOK_SECONDS)

    async def _learn(self) -> None:
        found = await self._ask("GET", "/.well-known/openid-configuration")
        self._issuer = str(found.get("issuer", ""))

    async def _create(self, version: str, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        question = {"apiVersion": version, "kind": kind, "spec": spec}
        answer = await self._ask("POST", f"/apis/{version}/{kind.lower()}s", question)
        status = answer.get("status")
        return status if isinstance(status, dict) else {}

    async def _ask(
        self, method: str, path: str, question: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        limits = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        with metrics.REVIEW_SECONDS.time():
            try:
                answer = await send(self._client, method, path, body=question, limits=limits)
                body = await answer.read()
                found = json.loads(body) if answer.status < 300 else None
            except _FAILURES as error:
                self._readiness.waiting(_PART, f"no answer: {type(error).__name__}")
                raise _unavailable() from error
        if not isinstance(found, dict):
            self._readiness.waiting(_PART, _why(answer.status, body))
            raise _unavailable()
        self._readiness.found(_PART)
        return found


def _why(status: int, body: bytes) -> str:
    """Return what the API server said instead: mostly which right is missing."""
    try:
        said = str(json.loads(body)["message"])
    except (ValueError, LookupError, TypeError):
        said = ""
    return f"it answered {status}: {said[:300]}"


def _unavailable() -> ProblemError:
    return ProblemError(
        Slug.KUBERNETES_UNAVAILABLE,
        "The Kubernetes API server did not say who you are or what you may do; try again",
        retry_after_seconds=RETRY_SECONDS,
    )
