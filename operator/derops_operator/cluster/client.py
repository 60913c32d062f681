"""All calls of the operator to Kubernetes, by the official client."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Self

import aiohttp
from kubernetes.aio import client
from kubernetes.aio.client.exceptions import ApiException

from derops.errors import DeropsError
from derops.kubeconfig import read_configuration
from derops_operator.resources.objects import FINALIZER, MANAGED_BY, Kind, Meta

FIELD_MANAGER = "derops-operator"
"""Owner of the fields that the operator applies."""

CHUNK = 100
"""Objects of one page of a list. One may have 256 KiB of annotations, or 1 MiB in all."""

_TIMEOUT_SECONDS = 30.0
_CONCURRENT_CALLS = 20
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"
_GROUPS = {
    Kind.ASSET: ("derops.io", "v1alpha1"),
    Kind.DISPATCH: ("derops.io", "v1alpha1"),
    Kind.REQUEST: ("cert-manager.io", "v1"),
    Kind.CERTIFICATE: ("cert-manager.io", "v1"),
}
_SELECTOR = ",".join(f"{key}={value}" for key, value in MANAGED_BY.items())


class ChangedMeanwhileError(DeropsError):
    """The object is not as it was decided on; hear of it first, then decide again."""


class GoneError(DeropsError):
    """The object does not exist any more."""


TRANSIENT = (ApiException, aiohttp.ClientError, OSError)
"""What a call to the API server fails with where the next one may not."""

Manifest = dict[str, Any]


class Kube:
    """The API server. Make it inside the event loop; ``close`` it there."""

    def __init__(self, configuration: client.Configuration) -> None:
        self._client = client.ApiClient(configuration)
        self._objects = client.CustomObjectsApi(self._client)
        self._core = client.CoreV1Api(self._client)
        self._slots = asyncio.Semaphore(_CONCURRENT_CALLS)

    @classmethod
    async def connect(cls) -> Self:
        """Read KUBECONFIG or the pod's service account; no call is made yet.

        Raises:
            SettingError: There is neither, or it cannot be read.
        """
        configuration = await read_configuration()
        configuration.connection_pool_maxsize = _CONCURRENT_CALLS
        return cls(configuration)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    async def list_all(self, kind: Kind) -> AsyncIterator[Manifest]:
        """Yield every object of a kind, of cert-manager's only ours, from one consistent list."""
        following = None
        while True:
            page = await self._call(
                "list_cluster_custom_object",
                *_GROUPS[kind],
                kind.value,
                limit=CHUNK,
                _continue=following,
                label_selector=_SELECTOR if kind in (Kind.REQUEST, Kind.CERTIFICATE) else None,
            )
            for manifest in page["items"]:
                yield manifest
            following = page["metadata"].get("continue")
            if not following:
                return

    async def read(self, kind: Kind, namespace: str, name: str) -> Manifest:
        """Return one object.

        Raises:
            GoneError: There is none.
        """
        return await self._call(
            "get_namespaced_custom_object", *_GROUPS[kind], namespace, kind.value, name
        )

    async def user_name(self) -> str:
        """Return the name by which the API server knows this program."""
        answer = await self._call(
            "create_cluster_custom_object",
            "authentication.k8s.io",
            "v1",
            "selfsubjectreviews",
            {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"},
        )
        return str(answer["status"]["userInfo"]["username"])

    async def requests_in(self, namespace: str) -> list[Manifest]:
        """Return the first ``CHUNK`` CertificateRequests of a namespace, whosoever they are."""
        page = await self._call(
            "list_namespaced_custom_object",
            *_GROUPS[Kind.REQUEST],
            namespace,
            Kind.REQUEST.value,
            limit=CHUNK,
        )
        return list(page["items"])

    async def policy(self, name: str) -> tuple[Manifest, Manifest]:
        """Return a ValidatingAdmissionPolicy and its binding, which has the same name.

        Raises:
            GoneError: Policy or binding is missing.
        """
        group = ("admissionregistration.k8s.io", "v1")
        read = "get_cluster_custom_object"
        policy, binding = await asyncio.gather(
            self._call(read, *group, "validatingadmissionpolicies", name),
            self._call(read, *group, "validatingadmissionpolicybindings", name),
        )
        return policy, binding

    async def set_finalizer(self, kind: Kind, meta: Meta, *, present: bool) -> Manifest:
        """Put our finalizer on an object, or take it off; those of others stay."""
        others = [each for each in meta.finalizers if each != FINALIZER]
        body = {
            "metadata": {
                "uid": meta.uid,
                "resourceVersion": meta.resource_version,
                "finalizers": [*others, FINALIZER] if present else others,
            }
        }
        return await self._patch("patch_namespaced_custom_object", kind, meta, body, _MERGE)

    async def patch_status(self, kind: Kind, meta: Meta, patch: Mapping[str, Any]) -> Manifest:
        """Merge ``patch`` into an object's status, if it still is the version that was read.

        Raises:
            ChangedMeanwhileError: It is not.
            GoneError: The object was deleted.
        """
        body = {
            "metadata": {"uid": meta.uid, "resourceVersion": meta.resource_version},
            "status": dict(patch),
        }
        return await self._patch("patch_namespaced_custom_object_status", kind, meta, body, _MERGE)

    async def delete(self, kind: Kind, meta: Meta) -> None:
        """Delete an object, if it still is the one with this uid."""
        await self._call(
            "delete_namespaced_custom_object",
            *_GROUPS[kind],
            meta.namespace,
            kind.value,
            meta.name,
            body={"preconditions": {"uid": meta.uid}},
        )

    async def apply(self, kind: Kind, manifest: Mapping[str, Any]) -> Manifest:
        """Create an object or bring it in line, by server-side apply."""
        metadata = manifest["metadata"]
        return await self._call(
            "patch_namespaced_custom_object",
            *_GROUPS[kind],
            metadata["namespace"],
            kind.value,
            metadata["name"],
            dict(manifest),
            field_manager=FIELD_MANAGER,
            force=True,
            _content_type=_APPLY,
        )

    async def config_maps(self, name: str) -> AsyncIterator[Manifest]:
        """Yield the ConfigMaps of one name in all namespaces; the right to it is for that name."""
        following = None
        while True:
            page = await self._call(
                "list_config_map_for_all_namespaces",
                api=self._core,
                field_selector=f"metadata.name={name}",
                limit=CHUNK,
                _continue=following,
            )
            for manifest in page["items"]:
                yield manifest
            following = page["metadata"].get("continue")
            if not following:
                return

    async def read_config_map(self, namespace: str, name: str) -> Manifest:
        """Return one ConfigMap.

        Raises:
            GoneError: There is none.
        """
        return await self._call("read_namespaced_config_map", name, namespace, api=self._core)

    async def apply_config_map(self, manifest: Mapping[str, Any]) -> Manifest:
        """Create a ConfigMap or bring it in line, by server-side apply."""
        metadata = manifest["metadata"]
        return await self._call(
            "patch_namespaced_config_map",
            metadata["name"],
            metadata["namespace"],
            dict(manifest),
            api=self._core,
            field_manager=FIELD_MANAGER,
            force=True,
            _content_type=_APPLY,
        )

    async def delete_config_map(self, namespace: str, name: str, uid: str) -> None:
        """Delete a ConfigMap, if it still is the one with this uid."""
        await self._call(
            "delete_namespaced_config_map",
            name,
            namespace,
            api=self._core,
            body={"preconditions": {"uid": uid}},
        )

    async def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        """Write an Event."""
        await self._call(
            "create_namespaced_custom_object",
            "events.k8s.io",
            "v1",
            namespace,
            "events",
            dict(body),
        )

    async def _patch(
        self, method: str, kind: Kind, meta: Meta, body: Mapping[str, Any], content_type: str
    ) -> Manifest:
        return await self._call(
            method,
            *_GROUPS[kind],
            meta.namespace,
            kind.value,
            meta.name,
            dict(body),
            field_manager=FIELD_MANAGER,
            _content_type=content_type,
        )

    async def _call(
        self, method: str, *arguments: object, api: object = None, **options: object
    ) -> Manifest:
        call = getattr(api or self._objects, f"{method}_without_preload_content")
        async with self._slots:
            answer = await call(*arguments, _request_timeout=_TIMEOUT_SECONDS, **options)
            body = await answer.read()
        if answer.status >= 400:
            raise failure(answer.status, body.decode(errors="replace"))
        manifest: Manifest = json.loads(body)
        return manifest


def failure(status: int, reason: str) -> Exception:
    """Return what an answer of the API server means that is no success."""
    if status == 404:
        return GoneError(reason)
    if status == 409:
        return ChangedMeanwhileError(reason)
    error: Exception = ApiException(status=status, reason=reason)
    return error
