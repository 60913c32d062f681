"""Answers of megabytes: few at once, each in parts that its client must read in time."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from derops_headend.api.problems import ProblemError, Slug

AT_ONCE, OF_ONE_AT_ONCE = 4, 1
"""How many are made or sent at once: of all callers, and of one."""

SEND_SECONDS = 60.0
"""How long a client may take to read all of it."""

PART_BYTES = 65_536


class ExportPlaces:
    """The places of callers whose large answer is made or sent."""

    def __init__(self) -> None:
        self._held: Counter[str] = Counter()

    @contextmanager
    def hold(self, caller: str) -> Iterator[None]:
        """Have a place.

        Raises:
            ProblemError: TOO_MANY_REQUESTS.
        """
        if self._held[caller] >= OF_ONE_AT_ONCE or self._held.total() >= AT_ONCE:
            raise ProblemError(
                Slug.TOO_MANY_REQUESTS,
                f"Too many large answers: a caller has {OF_ONE_AT_ONCE} at a time, all callers "
                f"together {AT_ONCE}; read the one before to its end",
                retry_after_seconds=1,
            )
        self._held[caller] += 1
        try:
            yield
        finally:
            self._held -= Counter({caller: 1})


PLACES = ExportPlaces()
"""The places of this process."""


class Export(Response):
    """A large answer: its place is taken before it is made, and free when it is sent."""

    def __init__(
        self, make: Callable[[], Awaitable[bytes]], caller: str, media_type: str, file_name: str
    ) -> None:
        super().__init__(media_type=media_type)
        del self.headers["content-length"]
        self.headers["content-disposition"] = f'attachment; filename="{file_name}"'
        self._make, self._caller = make, caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Make and send it; a client that reads too slowly gets only the beginning."""
        with PLACES.hold(self._caller), suppress(TimeoutError):
            body = await self._make()
            self.headers["content-length"] = str(len(body))
            async with asyncio.timeout(SEND_SECONDS):
                await send(
                    {
                        "type": "http.response.start",
                        "status": self.status_code,
                        "headers": self.raw_headers,
                    }
                )
                for begin in range(0, len(body), PART_BYTES):
                    part = body[begin : begin + PART_BYTES]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
