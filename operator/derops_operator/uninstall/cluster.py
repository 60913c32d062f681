"""What an uninstallation asks of the API server, beside what the operator does."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeVar

import aiohttp
from kubernetes.aio.client.exceptions import ApiException

from derops.backoff import back_off_seconds
from derops.errors import DeropsError
from derops.installation import CONFIG_MAP
from derops_operator.cluster.client import (
    CHUNK,
    ChangedMeanwhileError,
    GoneError,
    Kube,
    Manifest,
    failure,
)
from derops_operator.reconciling.agent_authority import TRUST_CERTIFICATE
from derops_operator.resources.objects import Kind
from derops_operator.trust.config_maps import SERVER_CA, read_held
from derops_operator.uninstall.arguments import OPERATOR
from derops_operator.uninstall.orders import PendingDispatch, release_patch

HEADEND = "derops-headend"
"""The StatefulSet of gateway and writer."""

TRANSIENT = (aiohttp.ClientError, TimeoutError, OSError)

_FIELD_MANAGER = "derops-uninstall"
_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.25, 30.0
_WATCH_SECONDS = 240
_GONE = 410
_INVALID = 422
"""Also of a JSON patch whose test failed."""

_JSON_PATCH = "application/json-patch+json"
_MERGE = "application/merge-patch+json"
_DEROPS = ("derops.io", "v1alpha1")
_APPS = ("apps", "v1")
_CERT_MANAGER = ("cert-manager.io", "v1")

T = TypeVar("T")
Change = tuple[str, Manifest]
"""ADDED, MODIFIED or DELETED, and the object."""


class ListExpiredError(DeropsError):
    """A list or watch is too old to go on with; begin anew."""


class NeededRight(NamedTuple):
    """A right that is needed."""

    verb: str
    group: str
    resource: str
    name: str = ""
    """Of the only objects that it is for. Empty = of all."""

    in_namespace: bool = False
    """In the namespace of derops alone."""

    def __str__(self) -> str:
        of = f" {self.name}" if self.name else ""
        where = "in its namespace" if self.in_namespace else "in all namespaces"
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}{of} {where}"


NEEDS = (
    *(NeededRight(verb, "derops.io", "dispatches") for verb in ("get", "list", "watch", "patch")),
    *(NeededRight(verb, "derops.io", "derassets") for verb in ("get", "list", "patch")),
    NeededRight("create", "events.k8s.io", "events"),
    NeededRight("get", "apps", "deployments", OPERATOR, in_namespace=True),
    NeededRight("patch", "apps", "deployments/scale", OPERATOR, in_namespace=True),
    NeededRight("get", "apps", "statefulsets", HEADEND, in_namespace=True),
    NeededRight("list", "", "pods", in_namespace=True),
    NeededRight("watch", "", "pods", in_namespace=True),
    NeededRight("list", "", "configmaps", SERVER_CA),
    NeededRight("delete", "", "configmaps", SERVER_CA),
    NeededRight("delete", "cert-manager.io", "certificates", TRUST_CERTIFICATE, in_namespace=True),
    NeededRight("delete", "", "secrets", TRUST_CERTIFICATE, in_namespace=True),
    NeededRight("delete", "", "configmaps", CONFIG_MAP, in_namespace=True),
)
"""The same as in charts/derops/files/uninstall-rules.yaml and uninstall-namespace-rules.yaml."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A Deployment or StatefulSet."""

    wanted: int
    ready: int
    annotations: Mapping[str, str]
    selector: str
    """Of its pods, as in a query."""


class Cluster(Kube):
    """The API server. What fails for a moment is tried again, for some seconds."""

    async def missing_rights(
        self, needs: Iterable[NeededRight], namespace: str
    ) -> list[NeededRight]:
        """Return which of these rights this program does not have."""
        needs = list(needs)
        has = await asyncio.gather(*(self._may(need, namespace) for need in needs))
        return [need for need, granted in zip(needs, has, strict=True) if not granted]

    async def _may(self, need: NeededRight, namespace: str) -> bool:
        resource, _, subresource = need.resource.partition("/")
        attributes = {
            "verb": need.verb,
            "group": need.group,
            "resource": resource,
            "subresource": subresource,
            "name": need.name,
            "namespace": namespace if need.in_namespace else "",
        }
        answer = await self._patiently(
            lambda: self._call(
                "create_cluster_custom_object",
                "authorization.k8s.io",
                "v1",
                "selfsubjectaccessreviews",
                {
                    "apiVersion": "authorization.k8s.io/v1",
                    "kind": "SelfSubjectAccessReview",
                    "spec": {"resourceAttributes": attributes},
                },
            )
        )
        return bool(answer["status"].get("allowed"))

    async def pages(self, kind: Kind) -> AsyncIterator[tuple[list[Manifest], str]]:
        """Yield all objects of a kind of ours, page by page, each with the version of the list.

        There are none where the cluster does not know the kind.

        Raises:
            ListExpiredError: It took too long.
        """
        following: str | None = None
        while True:
            try:
                page = await self._patiently(
                    partial(
                        self._call,
                        "list_cluster_custom_object",
                        *_DEROPS,
                        kind.value,
                        limit=CHUNK,
                        _continue=following,
                    )
                )
            except GoneError:
                return
            yield page["items"], page["metadata"]["resourceVersion"]
            following = page["metadata"].get("continue")
            if not following:
                return

    def watch_dispatches(self, version: str) -> AsyncIterator[Change]:
        """Yield what changes after ``version``, for some minutes."""
        call = self._objects.list_cluster_custom_object_without_preload_content
        return self._watch(call, *_DEROPS, Kind.DISPATCH.value, resource_version=version)

    async def pods(self, namespace: str, selector: str) -> tuple[dict[str, str], str]:
        """Return the pods of a Deployment, names by uid, and the version of the list.

        The pod that asks may well bear the same labels: only those of a ReplicaSet count.
        """
        page = await self._patiently(
            lambda: self._call(
                "list_namespaced_pod", namespace, api=self._core, label_selector=selector
            )
        )
        pods = {
            pod["metadata"]["uid"]: pod["metadata"]["name"]
            for pod in page["items"]
            if any(
                owner.get("kind") == "ReplicaSet"
                for owner in pod["metadata"].get("ownerReferences", ())
            )
        }
        return pods, page["metadata"]["resourceVersion"]

    def watch_pods(self, namespace: str, selector: str, version: str) -> AsyncIterator[Change]:
        """Yield what changes in pods after ``version``, for some minutes."""
        call = self._core.list_namespaced_pod_without_preload_content
        return self._watch(call, namespace, label_selector=selector, resource_version=version)

    async def workload(self, namespace: str, plural: str, name: str) -> Workload | None:
        """Return a Deployment or StatefulSet; None = there is none."""
        try:
            found = await self._patiently(
                lambda: self._call("get_namespaced_custom_object", *_APPS, namespace, plural, name)
            )
        except GoneError:
            return None
        labels = found["spec"]["selector"].get("matchLabels", {})
        return Workload(
            wanted=found["spec"].get("replicas", 1),
            ready=found.get("status", {}).get("readyReplicas", 0),
            annotations=found["metadata"].get("annotations", {}),
            selector=",".join(f"{label}={value}" for label, value in labels.items()),
        )

    async def scale(self, namespace: str, replicas: int) -> None:
        """Have so many operators; 0 ends it."""
        await self._patiently(
            lambda: self._call(
                "patch_namespaced_custom_object_scale",
                *_APPS,
                namespace,
                "deployments",
                OPERATOR,
                {"spec": {"replicas": replicas}},
                field_manager=_FIELD_MANAGER,
                _content_type=_MERGE,
            )
        )

    async def cancel(self, order: PendingDispatch) -> None:
        """Withdraw a Dispatch, as a person would.

        Raises:
            GoneError: It was deleted.
            ChangedMeanwhileError: It is another one of the same name.
        """
        body = {"metadata": {"uid": order.meta.uid}, "spec": {"desiredState": "Cancelled"}}
        await self._patiently(
            lambda: self._patch_object(
                Kind.DISPATCH, order.meta.namespace, order.meta.name, body, _MERGE
            )
        )

    async def release(self, kind: Kind, manifest: Manifest) -> None:
        """Take our finalizers off an object, whatever others do to it meanwhile.

        Raises:
            ApiException: The API server refuses that.
        """
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        for attempt in range(_ATTEMPTS):
            patch = release_patch(manifest)
            if not patch:
                return
            try:
                await self._patiently(
                    partial(self._patch_object, kind, namespace, name, patch, _JSON_PATCH)
                )
            except GoneError:
                return
            except (ChangedMeanwhileError, ApiException) as refusal:
                last = attempt == _ATTEMPTS - 1
                changed = isinstance(refusal, ChangedMeanwhileError) or refusal.status == _INVALID
                if last or not changed:
                    raise
            try:
                manifest = await self._patiently(lambda: self.read(kind, namespace, name))
            except GoneError:
                return

    async def told_namespaces(self) -> dict[str, str]:
        """Return the uids of the operator's ConfigMaps with the server CA, by namespace.

        Those that somebody else made are not among them.
        """

        async def read() -> dict[str, str]:
            return {
                str(manifest["metadata"]["namespace"]): read_held(manifest).uid
                async for manifest in self.config_maps(SERVER_CA)
                if read_held(manifest).ours
            }

        return await self._patiently(read)

    async def forget_server_ca(self, namespace: str, uid: str) -> None:
        """Delete that ConfigMap of a namespace, if it still is the one with this uid."""
        await self._patiently(lambda: self.delete_config_map(namespace, SERVER_CA, uid))

    async def forget_installation(self, namespace: str) -> None:
        """Delete what the operator says of the installation; it would grow old for ever."""
        await self._patiently(
            lambda: self._call(
                "delete_namespaced_config_map", CONFIG_MAP, namespace, api=self._core
            )
        )

    async def forget_trust_certificate(self, namespace: str) -> None:
        """Delete the certificate that tells the operator who the agent CA is, and its Secret."""
        name = TRUST_CERTIFICATE
        kind = Kind.CERTIFICATE.value
        calls: tuple[Callable[[], Awaitable[Manifest]], ...] = (
            lambda: self._call(
                "delete_namespaced_custom_object", *_CERT_MANAGER, namespace, kind, name
            ),
            # cert-manager leaves it.
            lambda: self._call("delete_namespaced_secret", name, namespace, api=self._core),
        )
        for call in calls:
            with suppress(GoneError):
                await self._patiently(call)

    async def _patch_object(
        self, kind: Kind, namespace: str, name: str, body: object, content_type: str
    ) -> Manifest:
        return await self._call(
            "patch_namespaced_custom_object",
            *_DEROPS,
            namespace,
            kind.value,
            name,
            body,
            field_manager=_FIELD_MANAGER,
            _content_type=content_type,
        )

    async def _watch(
        self, call: Callable[..., Awaitable[Any]], *arguments: object, **options: object
    ) -> AsyncIterator[Change]:
        answer = await call(
            *arguments,
            watch=True,
            timeout_seconds=_WATCH_SECONDS,
            _request_timeout=_WATCH_SECONDS + 30,
            **options,
        )
        async with answer:
            if answer.status >= 400:
                raise _refusal(failure(answer.status, (await answer.read()).decode()))
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    change = json.loads(line)
                    if change["type"] == "ERROR":
                        raise ListExpiredError(str(change["object"].get("message", "")))
                    yield change["type"], change["object"]

    async def _patiently(self, call: Callable[[], Awaitable[T]]) -> T:
        """Try again what failed for a moment; a refusal is final."""
        for attempt in range(_ATTEMPTS):
            try:
                return await call()
            except TRANSIENT:
                if attempt == _ATTEMPTS - 1:
                    raise
            except ApiException as refused:
                if not _is_momentary(refused):
                    raise _refusal(refused) from None
                if attempt == _ATTEMPTS - 1:
                    raise
            await asyncio.sleep(
                back_off_seconds(attempt, _FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS)
            )
        raise AssertionError


def _is_momentary(refused: ApiException) -> bool:
    status = refused.status or 0
    return status == 429 or status >= 500


def _refusal(error: Exception) -> Exception:
    expired = isinstance(error, ApiException) and error.status == _GONE
    return ListExpiredError(str(error)) if expired else error


def explain(error: BaseException) -> str:
    """Return in one line what the API server said."""
    text = str(error.reason) if isinstance(error, ApiException) else str(error)
    with suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["message"]
    return " ".join(text.split())[:300] or type(error).__name__
