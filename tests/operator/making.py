"""Resources, reports and views as tests want them: a plain default, and what is different."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

from tests.crds.manifests import BATTERY, DISPATCH

from derops.lifecycle import Phase
from derops.schedules import SECOND_US
from derops.transitions import Actor, may_say
from derops.wire.v1 import dispatch_pb2
from derops_operator.gateways.views import Holding, ReportedDispatch
from derops_operator.reconciling.actions import DispatchDecision, RemoveFinalizer, Submit
from derops_operator.reconciling.dispatches import reconcile_dispatch
from derops_operator.resources.assets import Asset, read_asset
from derops_operator.resources.dispatches import Dispatch, read_dispatch
from derops_operator.resources.instants import format_second
from derops_operator.resources.objects import FINALIZER

T0 = 1_800_000_000 * SECOND_US
"""Creation of everything; starts are T0 too unless said otherwise."""


def at(seconds: float) -> int:
    return T0 + round(seconds * SECOND_US)


def metadata(name: str, **others: Any) -> dict[str, Any]:
    return {
        "namespace": "pilot",
        "name": name,
        "uid": f"uid-{name}",
        "generation": 1,
        "resourceVersion": "10",
        "creationTimestamp": format_second(T0),
        **others,
    }


def asset(
    name: str = "battery",
    *,
    deleting: float | None = None,
    held: bool = False,
    status: dict[str, Any] | None = None,
    **spec: Any,
) -> Asset:
    fields: dict[str, Any] = {"finalizers": [FINALIZER] if held else []}
    if deleting is not None:
        fields["deletionTimestamp"] = format_second(at(deleting))
    return read_asset(
        {
            "metadata": metadata(name, **fields),
            "spec": {
                **deepcopy(BATTERY["spec"]),
                "limits": {"maxInjectionWatts": 8000, "maxDispatchDurationSeconds": 3600},
                **spec,
            },
            "status": status or {},
        }
    )


def dispatch(
    name: str = "peak",
    *,
    submitted: bool = False,
    deleting: float | None = None,
    generation: int = 1,
    status: dict[str, Any] | None = None,
    **spec: Any,
) -> Dispatch:
    """Return a dispatch of 5 kW for 100 s from T0; ``submitted``: gateways may hold it."""
    fields: dict[str, Any] = {
        "generation": generation,
        "finalizers": [FINALIZER] if submitted else [],
    }
    if deleting is not None:
        fields["deletionTimestamp"] = format_second(at(deleting))
    return read_dispatch(
        {
            "metadata": metadata(name, **fields),
            "spec": {
                **deepcopy(DISPATCH["spec"]),
                "assetRef": {"name": "battery"},
                "startTime": format_second(T0),
                "durationSeconds": 100,
                **spec,
            },
            "status": status or {},
        }
    )


def holding(**others: Any) -> Holding:
    fields: dict[str, Any] = {
        "replica": "gateway-0",
        "connected": True,
        "state_since_us": at(-3600),
        "accepted": True,
        "generation": 1,
        "written_us": 0,
    }
    return Holding(**{**fields, **others})


def view(*holdings: Holding, **others: Any) -> ReportedDispatch:
    fields = {"holdings": holdings or (holding(),), "complete": True, "cancelled": True}
    return ReportedDispatch(**{**fields, **others})


def report(phase: str, reason: str = "", **fields: Any) -> dispatch_pb2.DispatchReport:
    """Return a report of the agent's one ledger."""
    return dispatch_pb2.DispatchReport(
        **{
            "sequence": 1,
            "ledger_id": "ledger",
            "dispatch_uid": "uid-peak",
            "observed_generation": 1,
            "phase": phase,
            "reason": reason or phase,
            **fields,
        }
    )


def acked(**fields: Any) -> dispatch_pb2.DispatchReport:
    times = {"accepted_us": at(1), "planned_start_us": at(1), "planned_end_us": at(100)}
    return report("Acked", "Accepted", **{**times, **fields})


def active(**fields: Any) -> dispatch_pb2.DispatchReport:
    times = {
        "accepted_us": at(1),
        "planned_start_us": at(1),
        "planned_end_us": at(100),
        "applied_us": at(2),
        "applied_watts": 5000,
        "active_milliseconds": 1000,
    }
    return report("Active", "Applied", **{**times, **fields})


def ended(
    phase: str = "Complete", reason: str = "WindowEnded", **fields: Any
) -> dispatch_pb2.DispatchReport:
    times = {
        "accepted_us": at(1),
        "planned_end_us": at(100),
        "applied_us": at(2),
        "applied_watts": 5000,
        "ended_us": at(100),
        "reverted_us": at(100.2),
        "active_milliseconds": 98_000,
        "sequence": 9,
        "transitions": [
            dispatch_pb2.Transition(phase="Acked", reason="Accepted", at_us=at(1)),
            dispatch_pb2.Transition(phase="Active", reason="Applied", at_us=at(2)),
            dispatch_pb2.Transition(phase=phase, reason=reason, at_us=at(100)),
        ],
    }
    return report(phase, reason, **{**times, **fields})


class Story:
    """One dispatch through several looks, each with the status that the last one stored."""

    def __init__(self, subject: Dispatch | None = None, home: Asset | None = None) -> None:
        self.dispatch = subject or dispatch()
        self.asset: Asset | None = home or asset()
        self.decision = DispatchDecision(status={})

    def look(self, seconds: float, seen: ReportedDispatch | None = None) -> "Story":
        """Decide and store what was decided."""
        self.decision = reconcile_dispatch(self.dispatch, self.asset, seen or view(), at(seconds))
        for line in self.decision.status["history"]:
            actor = Actor(line["actor"])
            said = may_say(actor, Phase(line["phase"]), line["reason"])
            # What a played agent says, it says for a test's own reasons.
            assert said or actor is Actor.AGENT, line
        meta = self.dispatch.meta
        if self.submit is not None and not meta.holds_finalizer:
            meta = replace(meta, finalizers=(FINALIZER,))
        if self.removal is not None:
            meta = replace(meta, finalizers=())
        self.dispatch = replace(self.dispatch, meta=meta, status=self.decision.status)
        return self

    def change(self, **fields: Any) -> "Story":
        """Change the spec or the metadata, as a person would."""
        meta = replace(
            self.dispatch.meta,
            generation=self.dispatch.meta.generation + 1,
            deleting_us=fields.pop("deleting_us", self.dispatch.meta.deleting_us),
        )
        self.dispatch = replace(self.dispatch, meta=meta, **fields)
        return self

    @property
    def status(self) -> dict[str, Any]:
        return self.decision.status

    @property
    def submit(self) -> Submit | None:
        found = [each for each in self.decision.actions if isinstance(each, Submit)]
        return found[0] if found else None

    @property
    def removal(self) -> RemoveFinalizer | None:
        found = [each for each in self.decision.actions if isinstance(each, RemoveFinalizer)]
        return found[0] if found else None

    @property
    def ending(self) -> tuple[str, str]:
        return self.status["phase"], self.status["reason"]

    @property
    def conditions(self) -> dict[str, str]:
        return {each["type"]: each["status"] for each in self.status["conditions"]}
