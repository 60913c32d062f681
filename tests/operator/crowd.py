"""Many assets, and the operator's core on them."""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

from tests.crds.manifests import BATTERY, DISPATCH
from tests.lifecycle.operating import Guard, Loud
from tests.operator.making import metadata
from tests.operator.test_status_writer import apply

from derops.data_path import CONDITION
from derops.observability import Readiness
from derops.schedules import SECOND_US
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_operator.cluster.client import Manifest
from derops_operator.cluster.events import EventWriter
from derops_operator.cluster.ports import Queue
from derops_operator.cluster.token_bucket import TokenBucket
from derops_operator.core import Core, Ports
from derops_operator.reconciling.conditions import find
from derops_operator.reconciling.identity import Realm
from derops_operator.resources.certificates import Request
from derops_operator.resources.instants import format_second
from derops_operator.resources.objects import Kind, Meta, ObjectKey

FLOWS = control_pb2.LinkState()
_SERIAL = {"serialNumber": "7f", "publicKeySHA256": "0", "notAfter": "2099-01-01T00:00:00Z"}
_REALM = Realm(trust_domain="derops.test", issuer="agents", requester="cert-manager")


class Crowd:
    """A played API server and replica around a core; who runs its queues is the test's to say."""

    def __init__(
        self,
        assets: int,
        *,
        work: Queue,
        publishing: Queue,
        bucket: TokenBucket,
        now_us: Callable[[], int],
    ) -> None:
        self._now_us = now_us
        self._versions = itertools.count(10)
        self._objects: dict[ObjectKey, Manifest] = {}
        self.written: Counter[Kind] = Counter()
        """Statuses that were stored."""

        self.changes: Counter[str] = Counter()
        """How often ``DataFlowing`` changed, by asset."""

        self.on_write: Callable[[ObjectKey, Manifest], None] = lambda key, manifest: None
        api: Any = self
        events = EventWriter(api)
        ports = Ports(
            api=api,
            status_bucket=bucket,
            events=events,
            troubles=Loud(events, Readiness()),
            guard=Guard(),
            listener=self,
            work=work,
            publishing=publishing,
            now_us=now_us,
        )
        self.core = Core(ports, _REALM, asset_grace_us=60 * SECOND_US)
        self.core.fleet.expected = 1
        self.names = [f"battery-{number}" for number in range(assets)]
        for name in self.names:
            self.add_asset("pilot", name)
        self.core.load()
        self.core.fleet.add_replica("one", 1, 1, now_us())
        self.core.fleet.note_accepted("one", 1_000_000, now_us())

    def add_asset(self, namespace: str, name: str) -> None:
        """Create a battery that has a certificate."""
        status = {"identity": {"current": _SERIAL}}
        spec = deepcopy(BATTERY["spec"])
        self._create(ObjectKey(Kind.ASSET, namespace, name), spec=spec, status=status)

    def add_dispatch(self, namespace: str, name: str, asset: str) -> None:
        """Create a dispatch of tomorrow."""
        start = format_second(self._now_us() + 86_400 * SECOND_US)
        spec = {
            **deepcopy(DISPATCH["spec"]),
            "assetRef": {"name": asset},
            "startTime": start,
            "durationSeconds": 60,
        }
        self._create(ObjectKey(Kind.DISPATCH, namespace, name), spec=spec, status={})

    def _create(self, key: ObjectKey, **fields: Any) -> None:
        self._put(key, {"metadata": self._metadata(key), **fields})

    def _metadata(self, key: ObjectKey) -> dict[str, Any]:
        born = {"creationTimestamp": format_second(self._now_us()), "namespace": key.namespace}
        return metadata(key.name, **born, uid=f"uid-{key.namespace}-{key.name}")

    def conditions(self, name: str) -> list[dict[str, Any]]:
        """Return the conditions of an asset as they are stored."""
        stored = self._objects[ObjectKey(Kind.ASSET, "pilot", name)]
        found: list[dict[str, Any]] = stored["status"].get("conditions", [])
        return found

    # What the replica says

    def connect(self, name: str, path: control_pb2.LinkState | None = FLOWS) -> None:
        """Have an agent connect, and its gateway tell where its data stands."""
        self._note(name, control_pb2.Session(connected=True, epoch=1, since_us=self._now_us()))
        self.tell(name, path)

    def tell(self, name: str, path: control_pb2.LinkState | None) -> None:
        """Have the gateway tell where the data of an asset stands."""
        state = control_pb2.DeviceState(
            asset_uid=f"uid-pilot-{name}",
            facts=agent_pb2.DeviceFacts(),
            received_us=self._now_us(),
            path=path,
        )
        self.core.fleet.note_device("one", state)
        self.core.note_news(state.asset_uid)

    def disconnect(self, name: str) -> None:
        """Have an agent lose its stream."""
        ended = control_pb2.Session(epoch=1, since_us=self._now_us(), end_reason="ConnectionLost")
        self._note(name, ended)

    def _note(self, name: str, session: control_pb2.Session) -> None:
        session.asset_uid = f"uid-pilot-{name}"
        ledger = dispatch_pb2.IdentityLedger()
        self.core.fleet.note_session("one", session, ledger, self._now_us())
        self.core.note_news(session.asset_uid)

    # What the core asks of the API server, and tells

    async def read(self, kind: Kind, namespace: str, name: str) -> Manifest:
        return self._objects[ObjectKey(kind, namespace, name)]

    async def set_finalizer(self, kind: Kind, meta: Meta, *, present: bool) -> Manifest:
        key = ObjectKey(kind, meta.namespace, meta.name)
        stored = self._objects[key]
        held = ["derops.io/in-flight"] if present else []
        return self._put(key, {**stored, "metadata": {**stored["metadata"], "finalizers": held}})

    async def patch_status(self, kind: Kind, meta: Meta, patch: Mapping[str, Any]) -> Manifest:
        key = ObjectKey(kind, meta.namespace, meta.name)
        stored = self._objects[key]
        status = apply(stored["status"], json.loads(json.dumps(patch)))
        if kind is Kind.ASSET:
            before, after = (
                find(each.get("conditions", []), CONDITION) for each in (stored["status"], status)
            )
            self.changes[meta.name] += before != after
        self.written[kind] += 1
        manifest = self._put(key, {**stored, "status": status})
        self.on_write(key, manifest)
        return manifest

    async def apply(self, kind: Kind, manifest: Mapping[str, Any]) -> Manifest:
        key = ObjectKey(kind, manifest["metadata"]["namespace"], manifest["metadata"]["name"])
        born = {**manifest["metadata"], **self._metadata(key)}
        return self._put(key, {**manifest, "metadata": born, "status": {}})

    def _put(self, key: ObjectKey, manifest: Manifest) -> Manifest:
        version = {"resourceVersion": str(next(self._versions))}
        manifest = {**manifest, "metadata": {**manifest["metadata"], **version}}
        self._objects[key] = manifest
        self.core.take(key.kind, manifest)
        return manifest

    def record(self, transition: control_pb2.HeadendTransition) -> None:
        pass

    def note_request(self, request: Request) -> None:
        pass

    def note_namespace(self, namespace: str) -> None:
        pass
