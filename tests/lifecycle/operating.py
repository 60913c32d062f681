"""The operator's decisions on resources in memory, in the order in which its controller acts."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from tests.lifecycle.site import Fuse
from tests.operator.making import metadata

from derops.lifecycle import Phase
from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2
from derops_operator.cluster.status_writer import is_worth_writing
from derops_operator.gateways import wire
from derops_operator.gateways.desired import Desired
from derops_operator.gateways.replicas import Fleet
from derops_operator.reconciling.actions import (
    AddFinalizer,
    DispatchAction,
    RemoveFinalizer,
    Settle,
    Submit,
)
from derops_operator.reconciling.credibility import Strange, distrust
from derops_operator.reconciling.dispatches import reconcile_dispatch
from derops_operator.resources.assets import Asset, read_asset
from derops_operator.resources.dispatches import Dispatch, read_dispatch
from derops_operator.resources.instants import format_second
from derops_operator.resources.objects import FINALIZER

SERIAL = "5e1a1"
KEY = "0" * 64
_IDENTITY = {"current": {"serialNumber": SERIAL, "publicKeySHA256": KEY}}


class Cluster:
    """What the API server stores: one asset and its dispatches, by name."""

    def __init__(
        self,
        now_us: Callable[[], int],
        on_status: Callable[[Dispatch, Mapping[str, Any]], None],
    ) -> None:
        self._now_us, self._on_status = now_us, on_status
        self.spec: dict[str, Any] = {
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
        self._born = format_second(now_us())
        self._generation = 0
        self.dispatches: dict[str, Dispatch] = {}
        self.change_asset()

    def change_asset(self, **fields: Any) -> None:
        """Change fields of the asset's spec."""
        self._generation += 1
        self.spec |= fields
        born = {"creationTimestamp": self._born, "generation": self._generation}
        self.asset: Asset = read_asset(
            {
                "metadata": metadata("battery", **born),
                "spec": self.spec,
                "status": {"identity": _IDENTITY},
            }
        )

    def create(self, name: str, **spec: Any) -> Dispatch:
        """Create a Dispatch now."""
        born = {"creationTimestamp": format_second(self._now_us())}
        manifest = {
            "metadata": metadata(name, **born),
            "spec": {"assetRef": {"name": "battery"}, **spec},
            "status": {},
        }
        self.dispatches[name] = read_dispatch(manifest)
        return self.dispatches[name]

    def change(self, name: str, **fields: Any) -> None:
        """Change the spec of a Dispatch."""
        known = self.dispatches[name]
        meta = replace(known.meta, generation=known.meta.generation + 1)
        self.dispatches[name] = replace(known, meta=meta, **fields)

    def delete(self, name: str) -> None:
        """Delete a Dispatch; a finalizer keeps it."""
        known = self.dispatches[name]
        if not known.meta.finalizers:
            del self.dispatches[name]
        elif known.meta.deleting_us is None:
            now_us = self._now_us()
            meta = replace(
                known.meta,
                generation=known.meta.generation + 1,
                deleting_us=now_us - now_us % SECOND_US,
            )
            self.dispatches[name] = replace(known, meta=meta)

    def set_finalizers(self, name: str, *finalizers: str) -> None:
        """Put finalizers on an object; one that is being deleted goes with its last."""
        known = self.dispatches[name]
        if known.meta.deleting_us is not None and not finalizers:
            del self.dispatches[name]
            return
        meta = replace(known.meta, finalizers=finalizers)
        self.dispatches[name] = replace(known, meta=meta)

    def write_status(self, name: str, status: Mapping[str, Any]) -> bool:
        """Store a status; return whether that was worth a write."""
        known = self.dispatches[name]
        if not is_worth_writing(known.status, status):
            return False
        self._on_status(known, status)
        self.dispatches[name] = replace(known, status=status)
        return True


class Operator:
    """One life of the operator's process: all it knows is what it lists and what gateways say."""

    def __init__(
        self, cluster: Cluster, gateways: int, now_us: Callable[[], int], era: int = 0
    ) -> None:
        self.fleet = Fleet(now_us())
        self.fleet.expected = gateways
        self.desired = Desired(now_us() // 1000, era)
        self.fuse = Fuse()
        self._cluster, self._now_us = cluster, now_us
        self._due_us: dict[str, int] = {}
        self._awaiting: set[str] = set()
        self._names = {each.meta.uid: name for name, each in cluster.dispatches.items()}
        self.give_asset()
        for name, dispatch in cluster.dispatches.items():
            self.concern(name)
            if dispatch.in_flight or dispatch.is_unreverted:
                for action in self._decide(dispatch).actions:
                    if isinstance(action, Submit):
                        self._submit(dispatch, action)

    def give_asset(self) -> None:
        """Give the asset to the gateways as it is now."""
        self.desired.put_asset(wire.asset_message(self._cluster.asset, _IDENTITY))
        for name, dispatch in self._cluster.dispatches.items():
            if not dispatch.phase.terminal:
                self.concern(name)

    def concern(self, name: str) -> None:
        """Look at a dispatch again."""
        self._due_us[name] = 0

    def hear(self, replica: str, message: control_pb2.ReplicaMessage) -> None:
        """Take what a replica says after its hello."""
        kind = message.WhichOneof("kind")
        if kind == "accepted_version":
            self.fleet.note_accepted(replica, message.accepted_version, self._now_us())
            for name in self._awaiting:
                self.concern(name)
            self._awaiting.clear()
        elif kind == "session":
            ledger = self.desired.ledger_of(message.session.asset_uid)
            seen = self.fleet.note_session(replica, message.session, ledger, self._now_us())
            if seen is not None:
                self.desired.tell(control_pb2.OperatorMessage(epoch_seen=seen))
        elif kind == "delivery":
            self.fleet.note_delivery(replica, message.delivery)
            self._concern_uid(message.delivery.dispatch_uid)
        elif kind == "report":
            self._hear_report(message.report)

    def _hear_report(self, message: control_pb2.AgentReport) -> None:
        uid = message.report.dispatch_uid
        dispatches = {each.meta.uid: each for each in self._cluster.dispatches.values()}
        strange = distrust(
            message,
            dispatches.get(uid),
            self._cluster.asset,
            given_to=self.desired.asset_uid_of(uid),
            ledger_ids=self.fleet.ledger_ids(uid),
        )
        assert strange in {None, Strange.UNKNOWN_DISPATCH}, f"{strange}: {message}"
        if strange is None and self.fleet.note_report(message):
            self._concern_uid(uid)

    def reconcile(self) -> bool:
        """Work off what is due; return whether anything was."""
        now_us = self._now_us()
        due = [name for name, due_us in self._due_us.items() if due_us <= now_us]
        for name in due:
            del self._due_us[name]
            self._reconcile(name)
        return bool(due)

    def _decide(self, dispatch: Dispatch) -> Any:
        uid = dispatch.meta.uid
        first_version, version = self.desired.dispatch_versions(uid)
        cancelled = self.desired.is_cancelled(uid)
        view = self.fleet.dispatch(uid, first_version, version, cancelled=cancelled)
        return reconcile_dispatch(dispatch, self._cluster.asset, view, self._now_us())

    def _reconcile(self, name: str) -> None:
        stored = self._cluster.dispatches.get(name)
        if stored is None:
            self._drop(name)
            return
        self._names[stored.meta.uid] = name
        decision = self._decide(stored)
        for action in decision.actions:
            self.fuse.burn()
            self._carry_out(name, stored, action)
        if name not in self._cluster.dispatches:
            self._drop(name)
            return
        self.fuse.burn()
        if self._cluster.write_status(name, decision.status):
            self.concern(name)
        elif decision.again_us is not None:
            self._due_us[name] = decision.again_us
        self.fuse.burn()

    def _carry_out(self, name: str, stored: Dispatch, action: DispatchAction) -> None:
        if isinstance(action, Submit):
            self._submit(stored, action)
            if action.cancelled:
                self._awaiting.add(name)
        elif isinstance(action, Settle):
            self.desired.remove_dispatch(stored.meta.uid)
        elif isinstance(action, AddFinalizer):
            self._cluster.set_finalizers(name, FINALIZER)
        elif isinstance(action, RemoveFinalizer):
            self._cluster.set_finalizers(name)

    def _drop(self, name: str) -> None:
        for uid in [uid for uid, known in self._names.items() if known == name]:
            del self._names[uid]
            self.desired.remove_dispatch(uid)
            self.fleet.forget(uid)

    def _submit(self, dispatch: Dispatch, order: Submit) -> None:
        uid = self._cluster.asset.meta.uid
        self.desired.put_dispatch(wire.dispatch_message(dispatch, uid, order))

    def _concern_uid(self, uid: str) -> None:
        if uid in self._names:
            self.concern(self._names[uid])


def ended(dispatch: Dispatch) -> bool:
    """Tell whether a dispatch has a terminal phase in its status."""
    return Phase(dispatch.status.get("phase") or Phase.SUBMITTED).terminal
