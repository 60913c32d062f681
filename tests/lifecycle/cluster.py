"""The API server: one asset, its dispatches and its Certificate, and what it refuses."""

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tests.operator.making import metadata

from derops.lifecycle import Phase
from derops.schedules import SECOND_US
from derops_operator.cluster.client import ChangedMeanwhileError, GoneError, Manifest
from derops_operator.reconciling.deadlines import DELETION_GRACE_US
from derops_operator.resources.assets import Asset, read_asset
from derops_operator.resources.dispatches import Dispatch, read_dispatch
from derops_operator.resources.instants import format_second, parse_instant
from derops_operator.resources.objects import FINALIZER, Kind, Meta, ObjectKey

SERIAL = "5e1a1"
KEY = "0" * 64
_FOREVER = "2099-01-01T00:00:00Z"
_IDENTITY = {"current": {"serialNumber": SERIAL, "publicKeySHA256": KEY, "notAfter": _FOREVER}}


class Change(NamedTuple):
    """What a watch tells: an object as it was after a change, or that it is gone."""

    key: ObjectKey
    uid: str
    manifest: Manifest | None


class Cluster:
    """What is stored, by kind and name. No manifest is changed in place."""

    def __init__(
        self,
        now_us: Callable[[], int],
        on_status: Callable[[Dispatch, Mapping[str, Any]], None],
    ) -> None:
        self._now_us, self._on_status = now_us, on_status
        self._version = 10
        self._objects: dict[ObjectKey, Manifest] = {}
        self.changes: deque[Change] = deque()
        """What the operator has not heard yet."""

        self.deleted_when_due = 0
        """How many dispatches the operator deleted: they were to live only so long."""

        self.dispatches: dict[str, Dispatch] = {}
        """As they are stored, by name."""

        born = {"creationTimestamp": format_second(now_us())}
        spec = {
            "type": "Battery",
            "ratings": {
                "maxInjectionWatts": 10_000,
                "maxAbsorptionWatts": 10_000,
                "energyCapacityWattHours": 20_000,
            },
            "limits": {"maxDispatchDurationSeconds": 3600},
            "fallback": {"activePowerWatts": 0},
            "telemetry": {"intervalSeconds": 1},
        }
        self.asset: Asset
        self._put(
            Kind.ASSET,
            {
                "metadata": metadata("battery", **born),
                "spec": spec,
                "status": {"identity": _IDENTITY},
            },
        )

    # What people do

    def change_asset(self, **fields: Any) -> None:
        """Change fields of the asset's spec."""
        stored = self._objects[key_of(Kind.ASSET, "battery")]
        self._respecify(Kind.ASSET, stored, **fields)

    def create(
        self, name: str, *, annotations: Mapping[str, str] | None = None, **spec: Any
    ) -> Dispatch:
        """Create a Dispatch now."""
        born = {
            "creationTimestamp": format_second(self._now_us()),
            "annotations": annotations or {},
        }
        manifest = {
            "metadata": metadata(name, **born),
            "spec": {"assetRef": {"name": "battery"}, **spec},
            "status": {},
        }
        self._put(Kind.DISPATCH, manifest)
        return self.dispatches[name]

    def change(self, name: str, **fields: Any) -> None:
        """Change fields of the spec of a Dispatch."""
        self._respecify(Kind.DISPATCH, self._objects[key_of(Kind.DISPATCH, name)], **fields)

    def delete(self, name: str) -> None:
        """Delete a Dispatch; a finalizer keeps it."""
        stored = self._objects[key_of(Kind.DISPATCH, name)]
        if "deletionTimestamp" in stored["metadata"]:
            return
        born = {"deletionTimestamp": format_second(self._now_us())}
        self._put(Kind.DISPATCH, _with_metadata(stored, **born, **_next_generation(stored)))

    def force_away(self, kind: Kind, name: str) -> None:
        """Take all finalizers off an object, and delete it."""
        stored = self._objects[key_of(kind, name)]
        born = {"deletionTimestamp": format_second(self._now_us())}
        self._put(kind, _with_metadata(stored, **born, finalizers=[]))

    # What the operator asks for

    def list_all(self) -> list[tuple[Kind, Manifest]]:
        """Return everything, in the order in which the operator lists."""
        order = (Kind.DISPATCH, Kind.ASSET, Kind.CERTIFICATE)
        return [(kind, each) for kind in order for key, each in self._objects.items()
                if key.kind is kind]  # fmt: skip

    def read(self, key: ObjectKey) -> Manifest:
        """Return an object."""
        if key not in self._objects:
            raise GoneError(key.name)
        return self._objects[key]

    def set_finalizer(self, kind: Kind, meta: Meta, *, present: bool) -> Manifest:
        """Put the operator's finalizer on, or off: not before an end, but where deletion waited."""
        stored = self._unchanged(kind, meta)
        if kind is Kind.DISPATCH and not present:
            dispatch = self.dispatches[meta.name]
            assert dispatch.phase.terminal or self._is_overdue(dispatch), f"let go early: {stored}"
        return self._put(kind, _with_metadata(stored, finalizers=[FINALIZER] if present else []))

    def patch_status(self, kind: Kind, meta: Meta, patch: Mapping[str, Any]) -> Manifest:
        """Merge a patch into a status, which must be one that may follow."""
        stored = self._unchanged(kind, meta)
        status = _merged(stored.get("status", {}), json.loads(json.dumps(patch)))
        held = FINALIZER in stored["metadata"].get("finalizers", [])
        assert held or "activeDispatch" not in status, f"nothing holds the asset: {status}"
        if kind is Kind.DISPATCH:
            before = self.dispatches[meta.name]
            self._on_status(before, status)
            given = status["phase"] != Phase.SUBMITTED or "submittedAt" in status["timeline"]
            flies = given and not Phase(status["phase"]).terminal
            assert not flies or before.meta.holds_finalizer, f"nothing holds {status}"
        return self._put(kind, {**stored, "status": status})

    def delete_finished(self, kind: Kind, meta: Meta) -> None:
        """Delete a dispatch for the operator: only one that ended long enough ago."""
        key = ObjectKey(kind, meta.namespace, meta.name)
        stored = self.read(key)
        if stored["metadata"]["uid"] != meta.uid:
            raise ChangedMeanwhileError(meta.name)
        dispatch = self.dispatches[meta.name]
        assert dispatch.phase.terminal, f"deleted before its end: {stored}"
        assert not dispatch.meta.holds_finalizer, f"deleted while it is held: {stored}"
        ended_us = parse_instant(dispatch.status["completionTime"])
        live_seconds = dispatch.ttl_seconds_after_finished
        assert live_seconds is not None, f"nobody wanted it deleted: {stored}"
        assert self._now_us() >= ended_us + live_seconds * SECOND_US, f"deleted early: {stored}"
        self.deleted_when_due += 1
        self.delete(meta.name)

    def apply(self, kind: Kind, manifest: Mapping[str, Any]) -> Manifest:
        """Create an object, or bring it in line."""
        name = manifest["metadata"]["name"]
        known = self._objects.get(key_of(kind, name))
        stored = known or {
            "metadata": metadata(name, creationTimestamp=format_second(self._now_us())),
            "status": {"conditions": [{"type": "Ready", "status": "True"}]},
        }
        wanted = {
            "metadata": stored["metadata"] | manifest["metadata"],
            "spec": json.loads(json.dumps(manifest["spec"])),
            "status": stored["status"],
        }
        return known if known == wanted else self._put(kind, wanted)

    def _unchanged(self, kind: Kind, meta: Meta) -> Manifest:
        stored = self.read(ObjectKey(kind, meta.namespace, meta.name))
        known = (stored["metadata"]["uid"], stored["metadata"]["resourceVersion"])
        if known != (meta.uid, meta.resource_version):
            raise ChangedMeanwhileError(meta.name)
        return stored

    def _is_overdue(self, dispatch: Dispatch) -> bool:
        deleting_us = dispatch.meta.deleting_us
        return deleting_us is not None and self._now_us() > deleting_us + DELETION_GRACE_US

    def _respecify(self, kind: Kind, stored: Manifest, **fields: Any) -> None:
        changed = _with_metadata(stored, **_next_generation(stored))
        self._put(kind, {**changed, "spec": {**stored["spec"], **fields}})

    def _put(self, kind: Kind, manifest: Manifest) -> Manifest:
        """Store an object; one that is being deleted goes with its last finalizer."""
        self._version += 1
        stored = _with_metadata(manifest, resourceVersion=str(self._version))
        name, uid = stored["metadata"]["name"], stored["metadata"]["uid"]
        key = key_of(kind, name)
        gone = "deletionTimestamp" in stored["metadata"] and not stored["metadata"]["finalizers"]
        if gone:
            self._objects.pop(key, None)
            self.dispatches.pop(name, None)
        else:
            self._objects[key] = stored
            if kind is Kind.DISPATCH:
                self.dispatches[name] = read_dispatch(stored)
            elif kind is Kind.ASSET:
                self.asset = read_asset(stored)
        self.changes.append(Change(key, uid, None if gone else stored))
        return stored


def key_of(kind: Kind, name: str) -> ObjectKey:
    """Return where an object is."""
    return ObjectKey(kind, "pilot", name)


def _with_metadata(manifest: Manifest, **fields: Any) -> Manifest:
    known = {"finalizers": [], **manifest["metadata"]}
    return {**manifest, "metadata": {**known, **fields}}


def _next_generation(manifest: Manifest) -> dict[str, int]:
    return {"generation": manifest["metadata"]["generation"] + 1}


def _merged(stored: Any, patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a JSON merge patch (RFC 7386) makes of an object."""
    merged = dict(stored) if isinstance(stored, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, Mapping):
            merged[name] = _merged(merged.get(name), value)
        else:
            merged[name] = value
    return merged
