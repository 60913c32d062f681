"""All calls of the API to Kubernetes: two watches that all callers share, and single writes."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp
from kubernetes.aio import client

from derops.observability import Readiness
from derops_headend.api.assets import KnownAsset, read_asset
from derops_headend.api.cache import Expiring
from derops_headend.api.connection import JSON, send
from derops_headend.api.orders import CREATED_BY, REQUEST_ID
from derops_headend.api.pages import no_page
from derops_headend.api.ports import DispatchPage, Existence, Manifest
from derops_headend.api.problems import ProblemError, Slug
from derops_headend.api.refusals import refused, unanswered
from derops_headend.api.shares import SHARE, Places
from derops_headend.api.watch import Key, Watch, events, hang_up, parse, read_page

FIELD_MANAGER = "derops-api"
"""The owner of the fields that the API writes."""

WRITE_SECONDS = 5
"""After so long the API server gives a write up: by then it was made, or never will be."""

_GROUP = "/apis/derops.io/v1alpha1"
_ASSETS, _DISPATCHES = f"{_GROUP}/derassets", f"{_GROUP}/dispatches"
_MERGE = "application/merge-patch+json"
_CONNECTIONS = 50
MOST_PAGE_BYTES = 2 * 1024**2
"""The most bytes of one page of Dispatches: several hundred usual ones."""

NAMESPACE_SECONDS, MOST_NAMESPACES = 10.0, 10_000
"""How long the API believes when a namespace was made, as long as a right; and for how many."""

_LISTINGS = 4
"""The most pages that are read at a time, for all callers."""

_READ = aiohttp.ClientTimeout(total=10.0, connect=5.0)
_WRITE = aiohttp.ClientTimeout(total=WRITE_SECONDS + 2.0, connect=3.0)
_LOOK_BACK_SECONDS = 4
"""By how much an API server's watches may lag behind the writes of another API server. A watch that
ends after so long gets a bookmark half-way, unless nothing was written meanwhile."""

_LOOK_BACK = aiohttp.ClientTimeout(total=_LOOK_BACK_SECONDS + 4.0)
_AWAY = (aiohttp.ClientError, OSError, TimeoutError)


class KubernetesAnswer(NamedTuple):
    """An answer of the API server."""

    status: int
    body: bytes

    @property
    def manifest(self) -> Manifest:
        """The object in the answer.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE: there is none.
        """
        try:
            return parse(self.body)
        except (ValueError, RecursionError) as error:
            raise unanswered() from error


class Kube:
    """The API server. Make it inside the event loop, ``run`` it in a task, ``close`` it there."""

    def __init__(self, configuration: client.Configuration, readiness: Readiness) -> None:
        configuration.connection_pool_maxsize = _CONNECTIONS
        self._client = client.ApiClient(configuration)
        self._namespaces: Expiring[str, datetime] = Expiring(MOST_NAMESPACES, time.monotonic)
        self._listings = Places(_LISTINGS)
        self._assets = Watch(_ASSETS, self._open, _keep_asset, readiness)
        self._dispatches = Watch(_DISPATCHES, self._open, _keep_dispatch, readiness)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def run(self) -> None:
        """Follow both kinds until cancelled."""
        async with asyncio.TaskGroup() as watches:
            watches.create_task(self._assets.run(), name="watch derassets")
            watches.create_task(self._dispatches.run(), name="watch dispatches")

    @property
    def ready(self) -> bool:
        """Whether both kinds are known as they are now."""
        return self._assets.fresh and self._dispatches.fresh

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        content_type: str = JSON,
        limits: aiohttp.ClientTimeout = _READ,
    ) -> KubernetesAnswer:
        """Send one request and return the answer, whatever its status.

        Raises:
            ProblemError: KUBERNETES_UNAVAILABLE: no answer came in time.
        """
        try:
            stream = await send(
                self._client,
                method,
                path,
                query=query,
                body=body,
                content_type=content_type,
                limits=limits,
            )
            return KubernetesAnswer(stream.status, await stream.read())
        except _AWAY as error:
            raise unanswered(creating=method == "POST" and path.endswith("/dispatches")) from error

    def assets(self, namespaces: Sequence[str]) -> list[KnownAsset]:
        """Return the DERAssets of some namespaces, in no order; see the port."""
        self._require(self._assets)
        return [each for namespace in namespaces for each in self._assets.of(namespace)]

    def asset(self, namespace: str, name: str) -> KnownAsset | None:
        """Return a DERAsset; see the port."""
        self._require(self._assets)
        return self._assets.get(namespace, name)

    def known_namespaces(self) -> list[str]:
        """Return the namespaces with an asset or a dispatch; see the port."""
        self._require(self._assets)
        self._require(self._dispatches)
        return sorted({*self._assets.namespaces(), *self._dispatches.namespaces()})

    async def namespace_made_at(self, namespace: str) -> datetime:
        """Return when a namespace was made; see the port."""
        known = self._namespaces.get(namespace)
        if known is None:
            path = f"/api/v1/namespaces/{quote(namespace, safe='')}"
            answer = await self.call("GET", path)
            if answer.status == HTTPStatus.FORBIDDEN:  # the API lacks the right, not its caller
                raise ProblemError(
                    Slug.KUBERNETES_UNAVAILABLE,
                    "The API lacks the right to get namespaces: give it the rights of its chart",
                    retry_after_seconds=round(NAMESPACE_SECONDS),
                )
            found = _expect(answer, HTTPStatus.OK)
            known = datetime.fromisoformat(found["metadata"]["creationTimestamp"])
            self._namespaces.put(namespace, known, NAMESPACE_SECONDS)
        return known

    def dispatch_version(self) -> str:
        """Return the resourceVersion up to which dispatches are known; see the port."""
        return self._dispatches.version

    @property
    def heard_seconds_ago(self) -> float:
        """How old the known assets may be; see the port."""
        return self._assets.heard_seconds_ago

    async def appears(self, namespace: str, name: str, within_seconds: float) -> bool:
        """Wait for a Dispatch to appear; see the port."""
        return await self._dispatches.appears(namespace, name, within_seconds)

    async def dispatch(self, namespace: str, name: str) -> Manifest | None:
        """Read one Dispatch; see the port."""
        answer = await self.call("GET", _dispatch_path(namespace, name))
        if answer.status == HTTPStatus.NOT_FOUND:
            return None
        return _expect(answer, HTTPStatus.OK)

    async def dispatches(
        self, namespace: str, *, limit: int, after: str | None, selector: Mapping[str, str]
    ) -> DispatchPage:
        """Read a page of Dispatches; see the port."""
        query: dict[str, str] = {}
        if selector:
            query["fieldSelector"] = ",".join(f"{name}={value}" for name, value in selector.items())
        if after:
            query["continue"] = after
        async with self._listings.hold(SHARE.get()):
            answer = await self._list(_dispatch_path(namespace), query, limit)
            return _page(answer, after)

    async def _list(self, path: str, query: Mapping[str, str], limit: int) -> KubernetesAnswer:
        try:
            page = await read_page(self._open, path, query, limit, MOST_PAGE_BYTES, _READ)
        except _AWAY as error:
            raise unanswered() from error
        return KubernetesAnswer(page.status, page.body)

    async def create_dispatch(
        self, namespace: str, manifest: Manifest, *, dry_run: bool
    ) -> Manifest:
        """Create a Dispatch; see the port."""
        query = {
            "fieldValidation": "Strict",
            "fieldManager": FIELD_MANAGER,
            "timeout": f"{WRITE_SECONDS}s",
        }
        if dry_run:
            query["dryRun"] = "All"
        answer = await self.call(
            "POST", _dispatch_path(namespace), query=query, body=manifest, limits=_WRITE
        )
        if answer.status != HTTPStatus.CREATED:
            raise refused(answer.status, answer.body, creating=not dry_run)
        return answer.manifest

    async def patch_dispatch(self, manifest: Manifest, spec: Mapping[str, Any]) -> Manifest:
        """Change a Dispatch; see the port."""
        metadata = manifest["metadata"]
        body = {
            "metadata": {"uid": metadata["uid"], "resourceVersion": metadata["resourceVersion"]},
            "spec": dict(spec),
        }
        answer = await self.call(
            "PATCH",
            _dispatch_path(metadata["namespace"], metadata["name"]),
            query={
                "fieldValidation": "Strict",
                "fieldManager": FIELD_MANAGER,
                "timeout": f"{WRITE_SECONDS}s",
            },
            body=body,
            content_type=_MERGE,
            limits=_WRITE,
        )
        return _expect(answer, HTTPStatus.OK)

    async def life_of(self, namespace: str, name: str, since_version: str) -> Existence:
        """Tell whether a Dispatch of a name existed since a version; see the port."""
        if not since_version.isdecimal():
            return Existence.UNKNOWN
        selector = {"fieldSelector": f"metadata.name={name}"}
        path = _dispatch_path(namespace)
        now = _expect(await self.call("GET", path, query=selector), HTTPStatus.OK)
        if now["items"]:
            return Existence.WAS_THERE
        query = {
            **selector,
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": since_version,
            "timeoutSeconds": str(_LOOK_BACK_SECONDS),
        }
        begun = time.monotonic()
        try:
            stream = await self._open(path, query, _LOOK_BACK)
            try:
                if stream.status == HTTPStatus.GONE:
                    return Existence.UNKNOWN
                if stream.status != HTTPStatus.OK:
                    raise refused(stream.status, await stream.read())
                life = await _look_back(stream.content, int(now["metadata"]["resourceVersion"]))
                if life is None and time.monotonic() - begun < _LOOK_BACK_SECONDS:
                    raise unanswered(creating=True)  # the watch ended before it had told all
                return life or Existence.NEVER_WAS
            finally:
                hang_up(stream)
        except (*_AWAY, ValueError, LookupError, TypeError) as error:
            raise unanswered(creating=True) from error

    def _require(self, watch: Watch[Any]) -> None:
        if not watch.fresh:
            raise unanswered()

    async def _open(
        self, path: str, query: Mapping[str, str], limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        return await send(self._client, "GET", path, query=query, limits=limits)


async def _look_back(content: aiohttp.StreamReader, now: int) -> Existence | None:
    """Tell whether a watch of one name saw an object, once it has told all up to a version.

    None = the watch ended before that.
    """
    async for event in events(content):
        if event["type"] == "ERROR":
            return Existence.UNKNOWN
        if event["type"] != "BOOKMARK":
            return Existence.WAS_THERE
        if int(event["object"]["metadata"]["resourceVersion"]) >= now:
            return Existence.NEVER_WAS
    return None


def _page(answer: KubernetesAnswer, after: str | None) -> DispatchPage:
    if answer.status == HTTPStatus.BAD_REQUEST and after:
        raise no_page()
    page = _expect(answer, HTTPStatus.OK)
    return DispatchPage(
        [_without_ballast(each) for each in page["items"]], page["metadata"].get("continue") or None
    )


def _without_ballast(manifest: Manifest) -> Manifest:
    """Drop fields that anybody may fill and no caller gets: a page could have hundreds of MiB."""
    metadata = manifest["metadata"]
    metadata.pop("managedFields", None)
    annotations = metadata.get("annotations") or {}
    metadata["annotations"] = {
        name: value for name, value in annotations.items() if name in (CREATED_BY, REQUEST_ID)
    }
    return manifest


def _expect(answer: KubernetesAnswer, status: HTTPStatus) -> Manifest:
    if answer.status != status:
        raise refused(answer.status, answer.body)
    return answer.manifest


def _dispatch_path(namespace: str, name: str | None = None) -> str:
    path = f"{_GROUP}/namespaces/{quote(namespace, safe='')}/dispatches"
    return path if name is None else f"{path}/{quote(name, safe='')}"


def _keep_asset(manifest: Mapping[str, Any]) -> tuple[Key, KnownAsset]:
    asset = read_asset(manifest)
    return (asset.namespace, asset.name), asset


def _keep_dispatch(manifest: Mapping[str, Any]) -> tuple[Key, bool]:
    """Keep only that a Dispatch is there: single ones are read from the API server."""
    metadata = manifest["metadata"]
    return (metadata["namespace"], metadata["name"]), True
