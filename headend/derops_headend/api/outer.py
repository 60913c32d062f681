"""The layer around all routes: it finds the caller, bounds the call, and records it.

No request without a credential gets further than here, whatever it asks for. An answer is held back
until its record is durable: a read without a record is not answered.
"""

import asyncio
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import structlog
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from derops_headend.api import limits, metrics
from derops_headend.api.answers import INTERNAL, problem_response
from derops_headend.api.call import Call
from derops_headend.api.caller import Caller
from derops_headend.api.callers.bearer import bearer_token, invalid_token, unauthenticated
from derops_headend.api.ports import Audit
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.settings import Network
from derops_headend.api.shares import SHARE
from derops_headend.api.sources import source_of

BODY_SECONDS = 10.0
"""How long a client may take to send a body."""

HELD_BYTES = 65_536
"""The most bytes that are held back of an answer that has not ended."""

USER_AGENT_CHARACTERS, PATH_CHARACTERS = 128, 256
"""How much of them is kept."""

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cross-origin-resource-policy", b"same-origin"),
]

_NAMESPACE = re.compile(r"/v1/namespaces/([-a-z0-9]{1,63})(?:/|$)", re.ASCII)

Authenticate = Callable[[str, str], Awaitable[Caller | None]]
"""Takes a token and its source; returns the caller. Raises ProblemError if nobody can tell."""


class Outer:
    """The ASGI application around that of the routes."""

    def __init__(
        self,
        app: ASGIApp,
        authenticate: Authenticate,
        audit: Audit,
        trusted_proxies: Sequence[Network],
        now: Callable[[], datetime],
    ) -> None:
        self._app, self._authenticate, self._audit = app, authenticate, audit
        self._trusted, self._now = trusted_proxies, now
        self._slots = limits.Slots()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request of HTTP; ignore other protocols."""
        if scope["type"] != "http":
            return
        begun = time.monotonic()
        answer = Answer(send, str(uuid.uuid4()))
        answer.has_unread_body = limits.has_body(scope)
        source = source_of(scope, self._trusted)
        try:
            caller = await self._caller_of(scope, source)
        except ProblemError as problem:
            await self._refuse(scope, source, answer, problem)
            return
        call = Call(
            request_id=answer.request_id,
            received_at=self._now(),
            caller=caller,
            method=scope["method"][:16],
            path=scope["path"][:PATH_CHARACTERS],
            source=source,
            user_agent=_header(scope, b"user-agent")[:USER_AGENT_CHARACTERS],
        )
        answer.record = lambda: self._record(call, answer)
        SHARE.set(caller.share)
        try:
            with self._slots.hold(caller.share):
                await self._answer(scope, receive, answer, call)
        except ProblemError as problem:  # no place
            await self._hold_back(scope, answer, call, problem)
        metrics.REQUEST_SECONDS.labels(status=answer.status).observe(time.monotonic() - begun)

    async def _caller_of(self, scope: Scope, source: str) -> Caller:
        token = bearer_token(scope["headers"])
        if token is None:
            raise unauthenticated()
        caller = await self._authenticate(token, source)
        if caller is None:
            raise invalid_token()
        return caller

    async def _refuse(
        self, scope: Scope, source: str, answer: "Answer", problem: ProblemError
    ) -> None:
        """Refuse a request whose caller is not known."""
        why = problem.faults[0].code if problem.faults else problem.slug.slug
        metrics.STRANGERS_REFUSED.labels(why=why).inc()
        try:
            path = scope["path"][:PATH_CHARACTERS]
            await self._audit.refused(source, problem.slug.slug, scope["method"][:16], path)
        except ProblemError:
            pass  # a refusal tells nothing, so it may go without a record
        await answer.give(problem_response(problem, answer.request_id), scope)

    async def _hold_back(
        self, scope: Scope, answer: "Answer", call: Call, problem: ProblemError
    ) -> None:
        """Refuse a caller with too many calls; a record of each would be a flood as well."""
        metrics.STRANGERS_REFUSED.labels(why=problem.slug.slug).inc()
        answer.record = None
        if (about := _NAMESPACE.match(call.path)) is not None:
            call.subject.namespace = about[1]
        await self._audit.held_back(call, problem.slug.status, problem.slug.slug)
        await answer.give(problem_response(problem, call.request_id), scope)

    async def _answer(self, scope: Scope, receive: Receive, answer: "Answer", call: Call) -> None:
        scope["state"] = {**scope.get("state", {}), "call": call, "answer": answer}
        try:
            limits.check_head(scope)
            body = await _body(scope, receive)
            answer.has_unread_body = False
            await self._app(scope, _given(body, receive), answer.send)
        except ProblemError as problem:
            answer.reason = problem.slug.slug
            await answer.give(problem_response(problem, call.request_id), scope)
        except Exception:
            structlog.get_logger("api").error(
                "call.failed", request_id=call.request_id, exc_info=True
            )
            if not answer.is_begun:
                answer.reason = INTERNAL.slug.slug
                await answer.give(problem_response(INTERNAL, call.request_id), scope)
        finally:
            await answer.end()

    async def _record(self, call: Call, answer: "Answer") -> ProblemError | None:
        """Record a call; return the problem to answer with instead, if there is one."""
        try:
            await self._audit.complete(call, answer.status, answer.reason, answer.sent_bytes)
        except ProblemError as problem:
            return None if _may_have_acted(call, answer.status) else problem
        return None


class Answer:
    """One answer: its end is held back until ``record`` has written it down."""

    def __init__(self, send: Send, request_id: str) -> None:
        self.request_id = request_id
        self.status = 0
        self.reason = ""
        """The slug of the problem; empty = there was none."""
        self.sent_bytes = 0
        self.has_unread_body = False
        """Whether the client may still send a body that nobody reads: then the connection ends."""
        self.is_begun = False
        """Whether the client has got a part of it, so that nothing can replace it."""
        self.record: Callable[[], Awaitable[ProblemError | None]] | None = None
        self._send = send
        self._held: list[Message] = []
        self._held_bytes = 0
        self._is_recorded = False

    async def send(self, message: Message) -> None:
        """Take a message of the application."""
        if self._is_recorded:
            return
        self._held.append(message)
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message["headers"], *self._own_headers(message["headers"])]
            return
        self.sent_bytes += len(message.get("body", b""))
        self._held_bytes += len(message.get("body", b""))
        if not message.get("more_body"):
            await self._finish()
        elif self._held_bytes > HELD_BYTES:
            await self._flush()

    async def give(self, response: Response, scope: Scope) -> None:
        """Answer with a response; drop what is held back."""
        self._held, self._held_bytes, self.sent_bytes = [], 0, 0
        await response(scope, _nothing, self.send)

    async def end(self) -> None:
        """Record an answer that has no end; a client that got its beginning is cut off."""
        if not self._is_recorded:
            self._is_recorded = True
            self.reason = self.reason or "aborted"
            if self.record is not None:
                await self.record()

    def _own_headers(self, given: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        own = [*_HEADERS, (b"x-request-id", self.request_id.encode())]
        if not any(name == b"cache-control" for name, _ in given):
            own.append((b"cache-control", b"no-store"))
        if self.has_unread_body:
            own.append((b"connection", b"close"))
        return own

    async def _finish(self) -> None:
        self._is_recorded = True
        problem = await self.record() if self.record is not None else None
        if problem is None:
            await self._flush()
        elif not self.is_begun:
            self.reason, self.record, self._is_recorded = problem.slug.slug, None, False
            await self.give(problem_response(problem, self.request_id), {"type": "http"})

    async def _flush(self) -> None:
        held, self._held, self._held_bytes = self._held, [], 0
        self.is_begun = True
        for message in held:
            await self._send(message)


def _may_have_acted(call: Call, status: int) -> bool:
    """Tell whether the call may have changed something: its announcement is a record already."""
    return call.is_announced and not 400 <= status < 500


async def _body(scope: Scope, receive: Receive) -> bytes:
    """Return the whole body.

    Raises:
        ProblemError: TOO_LARGE; BAD_REQUEST: it is too slow, or has no end;
            UNSUPPORTED_MEDIA_TYPE.
    """
    if not limits.has_body(scope):
        return b""
    limits.check_length(scope)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ProblemError(Slug.BAD_REQUEST, "The connection ended before the body")
                body += message.get("body", b"")
                if len(body) > limits.BODY_BYTES:
                    raise limits.body_too_large()
                if not message.get("more_body"):
                    break
    except TimeoutError as error:
        raise ProblemError(
            Slug.BAD_REQUEST, f"The body did not come to its end within {BODY_SECONDS:.0f} s"
        ) from error
    if body:
        limits.check_media_type(scope)
    return bytes(body)


def _given(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives a body which was read already, then what else comes."""
    left = [body]

    async def give() -> Message:
        if left:
            return {"type": "http.request", "body": left.pop(), "more_body": False}
        return await receive()

    return give


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


def _header(scope: Scope, name: bytes) -> str:
    return next((v.decode("latin-1") for n, v in scope["headers"] if n == name), "")
