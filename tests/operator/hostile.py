"""An API server that holds whatever a test puts into it, also what a real one would refuse."""

import asyncio
import copy
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

from kubernetes.aio.client.exceptions import ApiException
from tests.pki import write_identity
from tests.stack.identities import chart_manifests

from derops.observability import Readiness
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError, Kube, Manifest
from derops_operator.cluster.status_writer import merge_patch
from derops_operator.controller import Controller
from derops_operator.resources.objects import FINALIZER, Kind, Meta, ObjectKey
from derops_operator.settings import OperatorSettings

__all__ = ["HostileKube", "merge_patch", "operator"]


def installed(template: str, created: str = "2026-01-01T00:00:00Z") -> tuple[Manifest, Manifest]:
    """Return the ValidatingAdmissionPolicy of a template and its binding, as if it were applied."""
    kinds = ("ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding")
    found = {each["kind"]: copy.deepcopy(each) for each in chart_manifests(template)}
    policy, binding = (found[kind] for kind in kinds)
    for each in (policy, binding):
        each["metadata"]["creationTimestamp"] = created
    return policy, binding


class HostileKube:
    """Objects by kind, in memory; writes change them as the real one would."""

    def __init__(self, objects: Iterable[tuple[Kind, Any]] = ()) -> None:
        self.objects = list(objects)
        self.events: list[tuple[str, str, str]] = []
        self.failure: Exception | None = None
        self.refused: dict[str, Exception] = {}
        """What each ConfigMap of a namespace is refused with."""

        self.maps: dict[tuple[str, str], Manifest] = {}
        """ConfigMaps by namespace and name."""

        self.applied: list[tuple[str, str]] = []
        self.policies: tuple[Manifest, Manifest] | None = installed("creator-policies.yaml")

    def find(self, kind: Kind, namespace: str, name: str) -> Manifest:
        for held, manifest in self.objects:
            try:
                metadata = manifest["metadata"]
                found = (held, metadata["namespace"], metadata["name"])
            except (TypeError, KeyError):
                continue
            if found == (kind, namespace, name):
                return cast("Manifest", manifest)
        raise GoneError(name)

    def remove(self, kind: Kind, namespace: str, name: str) -> None:
        gone = self.find(kind, namespace, name)
        self.objects = [each for each in self.objects if each[1] is not gone]

    async def list_all(self, kind: Kind) -> AsyncIterator[Any]:
        if self.failure is not None:
            raise self.failure
        for held, manifest in list(self.objects):
            if held is kind:
                yield manifest

    async def read(self, kind: Kind, namespace: str, name: str) -> Manifest:
        return self.find(kind, namespace, name)

    async def patch_status(self, kind: Kind, meta: Meta, patch: Mapping[str, Any]) -> Manifest:
        manifest = self.find(kind, meta.namespace, meta.name)
        manifest["status"] = {**manifest.get("status", {}), **patch}
        return self._changed(manifest)

    async def set_finalizer(self, kind: Kind, meta: Meta, *, present: bool) -> Manifest:
        manifest = self.find(kind, meta.namespace, meta.name)
        manifest["metadata"]["finalizers"] = [FINALIZER] if present else []
        return self._changed(manifest)

    async def apply(self, kind: Kind, manifest: Mapping[str, Any]) -> Manifest:
        metadata = manifest["metadata"]
        try:
            stored = self.find(kind, metadata["namespace"], metadata["name"])
        except GoneError:
            stored = {"metadata": {"uid": f"uid-{metadata['name']}", "resourceVersion": "1"}}
            stored["metadata"]["creationTimestamp"] = "2027-01-15T08:00:00Z"
            self.objects.append((kind, stored))
        before = (dict(stored["metadata"]), stored.get("spec"))
        stored["metadata"] |= metadata
        stored["spec"] = manifest["spec"]
        if (stored["metadata"], stored["spec"]) == before:
            return stored
        return self._changed(stored)

    async def config_maps(self, name: str) -> AsyncIterator[Manifest]:
        for key, manifest in list(self.maps.items()):
            if key[1] == name:
                yield manifest

    async def read_config_map(self, namespace: str, name: str) -> Manifest:
        if (namespace, name) not in self.maps:
            raise GoneError(name)
        return self.maps[namespace, name]

    async def apply_config_map(self, manifest: Mapping[str, Any]) -> Manifest:
        metadata = manifest["metadata"]
        key = (metadata["namespace"], metadata["name"])
        if key[0] in self.refused:
            raise self.refused[key[0]]
        self.applied.append(key)
        known = self.maps.get(key, {"metadata": {"uid": f"uid-{len(self.applied)}"}})
        if known.get("immutable"):
            raise ApiException(status=422, reason="field is immutable when `immutable` is set")
        self.maps[key] = {
            **known,
            "metadata": {**known["metadata"], **metadata},
            "data": {**known.get("data", {}), **manifest["data"]},
        }
        return self.maps[key]

    async def delete_config_map(self, namespace: str, name: str, uid: str) -> None:
        if (namespace, name) not in self.maps:
            raise GoneError(name)
        if self.maps[namespace, name]["metadata"]["uid"] != uid:
            raise ChangedMeanwhileError(name)
        del self.maps[namespace, name]

    async def policy(self, name: str) -> tuple[Manifest, Manifest]:
        if self.policies is None:
            raise GoneError(name)
        return self.policies

    async def create_event(self, namespace: str, body: Mapping[str, Any]) -> None:
        regarding = body["regarding"]
        self.events.append((regarding["kind"], regarding["name"], body["reason"]))

    def _changed(self, manifest: Manifest) -> Manifest:
        version = manifest["metadata"].get("resourceVersion")
        known = version if isinstance(version, str) and version.isdecimal() else "1"
        manifest["metadata"]["resourceVersion"] = str(int(known[:18]) + 1)
        return manifest


@asynccontextmanager
async def operator(
    kube: HostileKube | Kube, directory: Path, readiness: Readiness | None = None
) -> AsyncIterator[Controller]:
    """Run a controller on it, whose gateways do not exist."""
    write_identity(directory)
    settings = OperatorSettings(
        gateways=("127.0.0.1:1",),
        control_tls_directory=directory,
        server_ca_file=directory / "ca.crt",
        trust_domain="derops.test",
    )
    controller = Controller(settings, cast("Kube", kube), readiness or Readiness())
    running = asyncio.create_task(controller.run())
    try:
        loaded = asyncio.create_task(controller.loaded.wait())
        async with asyncio.timeout(60):
            await asyncio.wait({running, loaded}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield controller
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


def key_of(kind: Kind, name: str, namespace: str = "pilot") -> ObjectKey:
    """Return where an object of these tests is."""
    return ObjectKey(kind, namespace, name)
