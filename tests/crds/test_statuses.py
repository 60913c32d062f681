"""A status with every field that the models have is taken whole, and kubectl can wait for it."""

from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from tests.crds.api import Api, RefusedError
from tests.crds.manifests import BATTERY, DISPATCH, Manifest, schema
from tests.stack.controlplane import ControlPlane

from derops.lifecycle import Phase
from derops.resources import parse_asset, parse_dispatch
from derops.resources.base import Condition
from derops.resources.derassets import (
    Capability,
    DERAssetStatus,
    IdentityStatus,
    KnownCertificate,
    PreviousCertificate,
    Quarantine,
)
from derops.resources.dispatches import (
    DispatchStatus,
    ExecutionStatus,
    LateReport,
    Reversion,
    Step,
    Timeline,
    Value,
)

AT = datetime(2030, 12, 1, 18, 0, 0, 123000, tzinfo=UTC)
UID = "0b8a3c0e-7d0f-4a35-9d4b-9a4c2f6f3f7a"
OF_DISPATCHES = [
    "Delivered", "Accepted", "Applied", "Verified", "Reverted", "Succeeded", "Ready",
    "Reconciling", "Stalled", "Degraded",
]  # fmt: skip
OF_ASSETS = [
    "Ready", "Reconciling", "Stalled", "Enrolled", "Connected", "Released", "Quarantined",
    "TelemetryDegraded", "DeviceSilent", "FallbackNotHeld", "DataFlowing",
]  # fmt: skip


def every_condition(types: list[str]) -> tuple[Condition, ...]:
    return tuple(
        Condition(
            type=each,
            status="True",
            reason="Applied",
            message="as it should be",
            observed_generation=1,
            last_transition_time=AT.replace(microsecond=0),
        )
        for each in types
    )


CERTIFICATE: dict[str, Any] = {
    "serial_number": "7f",
    "public_key_sha256": "a" * 64,
    "not_after": AT,
}
ASSET = DERAssetStatus(
    observed_generation=1,
    identity=IdentityStatus(
        uri="spiffe://derops.test/ns/pilot-north/derasset/battery-7",
        current=KnownCertificate(**CERTIFICATE),
        next=KnownCertificate(**CERTIFICATE),
        previous=PreviousCertificate(**CERTIFICATE, accepted_until=AT),
        quarantine=Quarantine(reason="CloneSuspected", at=AT),
        suspected_at=AT,
        revoked_before=AT,
    ),
    active_dispatch="evening-peak",
    last_connected_time=AT,
    last_disconnected_time=AT,
    capability=Capability(
        modes=("ActivePower", "CeaseToEnergize"),
        driver="simulated",
        firmware="1.0",
        max_injection_watts=10000,
        max_absorption_watts=8000,
    ),
    conditions=every_condition(OF_ASSETS),
)
COMPLETE = DispatchStatus(
    phase=Phase.COMPLETE,
    reason="WindowEnded",
    message="the window ended as planned and the device was reverted",
    created_by="alice@example.org",
    observed_generation=1,
    completion_time=AT,
    conditions=every_condition(OF_DISPATCHES),
    timeline=Timeline(
        submitted_at=AT,
        sent_at=AT,
        acked_at=AT,
        planned_start=AT,
        planned_end=AT,
        applied_at=AT,
        verified_at=AT,
        ended_at=AT,
        reverted_at=AT,
        reported_at=AT,
        clock_offset_milliseconds=-12,
    ),
    execution=ExecutionStatus(
        requested=Value(mode="ActivePower", watts=-9000),
        applied=Value(mode="ActivePower", watts=-8000),
        clamped_by="AssetLimits",
        rounding="the device holds steps of 690 W; rounded towards zero",
        active_seconds=1800,
        within_tolerance_seconds=1750,
        delivered_watt_hours=-4000,
        interruptions=1,
        evidence="Effect",
    ),
    reversion=Reversion(guard="AgentTimer", deadline=AT),
    superseded_by=UID,
    supersedes=(UID,),
    late_report=LateReport(phase="Failed", reason="RevertedLate", message="late", at=AT),
    history=(Step(at=AT, phase="Active", reason="Applied", message="applied", actor="Agent"),) * 20,
)


def dumped(status: BaseModel) -> Manifest:
    return status.model_dump(mode="json", by_alias=True, exclude_none=True)


def names(value: Any, path: str = "") -> set[str]:
    """Return the paths of all fields in a value or a schema's example of it."""
    if isinstance(value, list):
        return set().union(*(names(each, f"{path}[]") for each in value))
    if isinstance(value, dict):
        inner = (names(each, f"{path}.{name}") for name, each in value.items())
        return set().union(*inner)
    return {path}


def leaves(node: Manifest, path: str = "") -> set[str]:
    """Return the paths of all leaves of a schema."""
    if "items" in node:
        return leaves(node["items"], f"{path}[]")
    if "properties" in node:
        inner = (leaves(each, f"{path}.{name}") for name, each in node["properties"].items())
        return set().union(*inner)
    return {path}


def test_a_full_status_of_an_asset_is_stored_as_it_was_written(api: Api) -> None:
    status = dumped(ASSET)

    stored = api.patch_status(api.create(BATTERY), status)

    assert names(status) == leaves(schema("DERAsset")["properties"]["status"])
    assert stored["status"] == status
    assert parse_asset(stored).status == ASSET


def test_a_full_status_of_a_dispatch_is_stored_as_it_was_written(api: Api) -> None:
    status = dumped(COMPLETE)

    stored = api.patch_status(api.create(DISPATCH), status)

    assert names(status) == leaves(schema("Dispatch")["properties"]["status"])
    assert stored["status"] == status
    assert parse_dispatch(stored).status == COMPLETE


def test_kubectl_can_wait_for_a_condition_and_for_a_phase(api: Api, kube: ControlPlane) -> None:
    api.patch_status(api.create(DISPATCH), dumped(COMPLETE))

    for what in ("condition=Applied", "condition=Succeeded", "jsonpath={.status.phase}=Complete"):
        kube.kubectl(
            "wait", f"--for={what}", "dispatch/evening-peak", "-n", api.namespace, "--timeout=60s"
        )


def test_a_condition_appears_once(api: Api) -> None:
    stored = api.create(DISPATCH)
    twice = dumped(COMPLETE)["conditions"][:1] * 2

    with pytest.raises(RefusedError, match="Duplicate value"):
        api.patch_status(stored, {"conditions": twice})
