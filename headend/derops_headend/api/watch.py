"""All objects of one kind, as the API server has them: listed once, then watched for ever."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import aiohttp
import structlog

from derops.observability import Readiness
from derops_headend.api.problems import ProblemError
from derops_headend.api.refusals import refused, unanswered

STALE_AFTER_SECONDS = 90.0
"""A watch hears a bookmark each minute, even if nothing changes."""

LONGEST_LINE = 8 * 1024**2
"""The most bytes of one object: etcd takes 1.5 MiB, and escapes make that longer in JSON."""

_DEEPEST = 30_000
"""The API server takes JSON of 10,000 levels from anybody, for example in metadata.managedFields.
Python's parser would give up at 1,000 levels, and with it the whole list."""

MOST_LISTED = 100
"""The most objects of one page, if that has no more than MOST_LISTED_BYTES."""

MOST_LISTED_BYTES = 1024**2
"""The objects that are made of JSON may take twenty-five times as much memory."""

_AGAIN_AFTER_SECONDS = 1.0
_SILENCE_SECONDS = 75.0
_WATCH_SECONDS = 300
_CALL = aiohttp.ClientTimeout(total=30.0, connect=10.0)
_STREAM = aiohttp.ClientTimeout(total=None, connect=10.0, sock_read=_SILENCE_SECONDS)

_log = structlog.get_logger("watch")

Kept = TypeVar("Kept")
Key = tuple[str, str]
"""Namespace and name."""


_TROUBLES = (
    aiohttp.ClientError,
    OSError,
    TimeoutError,
    ProblemError,
    # A proxy before the API server may answer in another form.
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)


class Opener(Protocol):
    """Sends a GET."""

    async def __call__(
        self, path: str, query: Mapping[str, str], limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        """Send it and return the answer, whatever its status.

        Raises:
            aiohttp.ClientError: There is no answer; so do OSError and TimeoutError.
        """


class _ExpiredError(Exception):
    """The API server no longer has the version where the watch stopped: list anew."""


class Watch(Generic[Kept]):
    """Keeps something of each object of a kind. ``run`` it in a task of its own."""

    def __init__(
        self,
        path: str,
        open_: Opener,
        keep: Callable[[Mapping[str, Any]], tuple[Key, Kept]],
        readiness: Readiness,
    ) -> None:
        """Make a watch that has not asked yet.

        Args:
            path: The path of the kind in all namespaces.
            open_: Sends a GET.
            keep: Returns the key of an object and what to keep of it; if it raises, that object
                alone is left as it was.
            readiness: Is told while nothing is heard.
        """
        self._path = path
        self._readiness = readiness
        self._part = f"watch of {path.rpartition('/')[2]}"
        readiness.expecting(self._part, "was not listed yet")
        self._open = open_
        self._keep = keep
        self._by_namespace: dict[str, dict[str, Kept]] = {}
        self._version = ""
        self._listed = False
        self._heard = 0.0
        self._changed = asyncio.Event()

    @property
    def version(self) -> str:
        """The resourceVersion up to which all changes are known; empty = nothing was heard yet."""
        return self._version

    @property
    def fresh(self) -> bool:
        """Whether it is complete, and not older than STALE_AFTER_SECONDS."""
        return self._listed and self.heard_seconds_ago <= STALE_AFTER_SECONDS

    @property
    def heard_seconds_ago(self) -> float:
        """Seconds since the API server last said anything of this kind, even "nothing changed"."""
        return time.monotonic() - self._heard

    async def appears(self, namespace: str, name: str, within_seconds: float) -> bool:
        """Wait until an object is there; tell whether it is."""
        try:
            async with asyncio.timeout(within_seconds):
                while self.get(namespace, name) is None:
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    def get(self, namespace: str, name: str) -> Kept | None:
        """Return what is kept of an object; None = there is none."""
        return self._by_namespace.get(namespace, {}).get(name)

    def of(self, namespace: str) -> list[Kept]:
        """Return what is kept of the objects of a namespace, in no order."""
        return list(self._by_namespace.get(namespace, {}).values())

    def namespaces(self) -> list[str]:
        """Return the namespaces with an object, sorted."""
        return sorted(self._by_namespace)

    async def run(self) -> None:
        """Follow the API server until cancelled; try again what fails."""
        failing = False
        while True:
            try:
                if not self._version:
                    await self._list()
                await self._follow()
                failing = False
            except _ExpiredError:
                self._version = ""
            except _TROUBLES as error:
                if not failing:
                    _log.warning("watch.failed", path=self._path, why=_words(error))
                failing = True
                self._tell(_words(error))
            # Also after a good end: the API server may end each watch at once.
            await asyncio.sleep(_AGAIN_AFTER_SECONDS)

    def _tell(self, problem: str) -> None:
        """Tell the readiness what is wrong; what was heard before is answered for a while."""
        tell = self._readiness.degraded if self.fresh else self._readiness.waiting
        tell(self._part, problem)

    async def _list(self) -> None:
        missing = {
            (namespace, name) for namespace, kept in self._by_namespace.items() for name in kept
        }
        query: dict[str, str] = {}
        limit = MOST_LISTED
        while True:
            status, body, limit = await read_page(
                self._open, self._path, query, limit, MOST_LISTED_BYTES, _CALL
            )
            if status == 410:
                raise _ExpiredError
            if status != 200:
                raise refused(status, body)
            page = parse(body)
            self._heard = time.monotonic()
            for manifest in page["items"]:
                key = self._take(manifest)
                missing.discard(key)
            following = page["metadata"].get("continue")
            if not following:
                break
            query["continue"] = following
            limit = min(MOST_LISTED, 2 * limit)
        for key in missing:
            self._drop(key)
        self._version = str(page["metadata"]["resourceVersion"])
        self._listed = True
        self._readiness.found(self._part)

    async def _follow(self) -> None:
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version,
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        answer = await self._open(self._path, query, _STREAM)
        try:
            if answer.status == 410:
                raise _ExpiredError
            if answer.status != 200:
                raise refused(answer.status, await answer.read())
            self._heard = time.monotonic()
            self._readiness.found(self._part)
            async for event in events(answer.content):
                self._heard = time.monotonic()
                self._hear(event)
        finally:
            hang_up(answer)

    def _hear(self, event: Mapping[str, Any]) -> None:
        kind, manifest = event.get("type"), event.get("object")
        if kind == "ERROR":
            raise _ExpiredError
        try:
            version = str(manifest["metadata"]["resourceVersion"])  # type: ignore[index]
        except (TypeError, LookupError):
            return
        if kind == "DELETED":
            self._drop(_key(manifest))
        elif kind in ("ADDED", "MODIFIED"):
            self._take(manifest)
        self._version = version

    def _take(self, manifest: Any) -> Key:
        try:
            key, kept = self._keep(manifest)
        except Exception as error:
            _log.warning("object.unreadable", path=self._path, why=type(error).__name__)
            return _key(manifest)
        self._by_namespace.setdefault(key[0], {})[key[1]] = kept
        self._changed.set()
        self._changed = asyncio.Event()
        return key

    def _drop(self, key: Key) -> None:
        kept = self._by_namespace.get(key[0], {})
        kept.pop(key[1], None)
        if not kept:
            self._by_namespace.pop(key[0], None)


def hang_up(answer: aiohttp.ClientResponse) -> None:
    """Read no more of an answer, and do not wait for the API server to close."""
    if answer.connection is not None and answer.connection.transport is not None:
        answer.connection.transport.abort()
    answer.close()


class ListedPage(NamedTuple):
    """An answer to a request for some objects."""

    status: int
    body: bytes
    limit: int
    """How many objects the request for this page asked for."""


async def read_page(
    open_: Opener,
    path: str,
    query: Mapping[str, str],
    limit: int,
    most_bytes: int,
    limits: aiohttp.ClientTimeout,
) -> ListedPage:
    """Read a page of at most so many objects: fewer if they are large, but one at least.

    Raises:
        ProblemError: KUBERNETES_UNAVAILABLE: one object is longer than any can be.
        aiohttp.ClientError: There is no answer; so do OSError and TimeoutError.
    """
    while True:
        answer = await open_(path, {**query, "limit": str(limit)}, limits)
        body = bytearray()
        try:
            async for data in answer.content.iter_any():
                body += data
                if len(body) > (most_bytes if limit > 1 else LONGEST_LINE):
                    break
            else:
                return ListedPage(answer.status, bytes(body), limit)
        finally:
            if not answer.content.at_eof():
                hang_up(answer)
        if limit == 1:
            raise unanswered()
        limit //= 2


async def events(content: aiohttp.StreamReader) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the events of a watch, one a line; leave out a line that cannot be read."""
    parts: list[bytes] = []
    length = 0
    async for data in content.iter_any():
        *ends, rest = data.split(b"\n")
        for end in ends:
            if length + len(end) <= LONGEST_LINE:
                event = _parse_event(b"".join((*parts, end)))
                if event is not None:
                    yield event
            parts, length = [], 0
        length += len(rest)
        if length <= LONGEST_LINE:
            parts.append(rest)
        else:
            parts = []


def _parse_event(line: bytes) -> Mapping[str, Any] | None:
    if not line.strip():
        return None
    try:
        return parse(line)
    except (ValueError, RecursionError) as error:
        _log.warning("event.unreadable", why=type(error).__name__)
        return None


def parse(body: bytes) -> dict[str, Any]:
    """Read a JSON object of any depth that the API server takes.

    Raises:
        ValueError: It is not a JSON object.
        RecursionError: It is deeper than that.
    """
    usual = sys.getrecursionlimit()
    sys.setrecursionlimit(max(usual, _DEEPEST))
    try:
        read = json.loads(body)
    finally:
        sys.setrecursionlimit(usual)
    if not isinstance(read, dict):
        raise ValueError("the API server answers no JSON object")
    return read


def _key(manifest: Any) -> Key:
    try:
        return str(manifest["metadata"]["namespace"]), str(manifest["metadata"]["name"])
    except (TypeError, LookupError):
        return "", ""


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]
