"""Resources as the gateways and agents hear of them."""

from collections.abc import Mapping
from typing import Any

from derops.wire.v1 import dispatch_pb2
from derops_operator.reconciling.actions import Submit
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import parse_instant

_OPTIONAL = (
    "fallback_active_power_watts",
    "fallback_max_generation_watts",
    "fallback_max_load_watts",
    "max_ramp_watts_per_second",
    "min_reserve_percent",
    "min_seconds_between_writes",
    "verification_tolerance_watts",
    "verification_tolerance_percent",
    "verification_settle_seconds",
    "verification_samples",
)


def asset_message(asset: Asset, identity: Mapping[str, Any]) -> dispatch_pb2.Asset:
    """Return a DERAsset for the wire, with the ledger as in ``status.identity``."""
    message = dispatch_pb2.Asset(
        id=asset_id(asset),
        generation=asset.meta.generation,
        type=asset.type,
        rated_max_injection_watts=asset.rated_max_injection_watts,
        rated_max_absorption_watts=asset.rated_max_absorption_watts,
        energy_capacity_watt_hours=asset.energy_capacity_watt_hours,
        limit_max_injection_watts=asset.limit_max_injection_watts,
        limit_max_absorption_watts=asset.limit_max_absorption_watts,
        max_dispatch_duration_seconds=asset.max_dispatch_duration_seconds,
        on_comms_loss=asset.on_comms_loss,
        failsafe_after_seconds=asset.failsafe_after_seconds,
        on_restart=asset.on_restart,
        telemetry_interval_seconds=asset.telemetry_interval_seconds,
        operating_state=asset.operating_state,
        on_exceed=asset.on_exceed,
        identity=_ledger(identity),
    )
    for field in _OPTIONAL:
        value = getattr(asset, field)
        if value is not None:
            setattr(message, field, value)
    return message


def dispatch_message(dispatch: Dispatch, asset_uid: str, order: Submit) -> dispatch_pb2.Dispatch:
    """Return a Dispatch for the wire."""
    return dispatch_pb2.Dispatch(
        uid=dispatch.meta.uid,
        namespace=dispatch.meta.namespace,
        name=dispatch.meta.name,
        asset_uid=asset_uid,
        asset_name=dispatch.asset_name,
        generation=dispatch.meta.generation,
        setpoint=dispatch_pb2.Setpoint(mode=dispatch.mode, watts=dispatch.watts),
        start_us=dispatch.start_us,
        duration_seconds=dispatch.duration_seconds,
        start_deadline_seconds=dispatch.start_deadline_seconds,
        late_policy=dispatch.late_policy,
        randomize_start_seconds=dispatch.randomize_start_seconds,
        primacy=dispatch.primacy,
        verify=dispatch.verify,
        cancelled=order.cancelled,
        cancel_reason=order.cancel_reason,
        known_phase=str(order.known_phase),
        created_us=dispatch.meta.created_us,
        request_id=dispatch.request_id,
    )


def asset_id(asset: Asset) -> dispatch_pb2.AssetId:
    """Return the name of an asset for the wire."""
    return dispatch_pb2.AssetId(
        uid=asset.meta.uid, namespace=asset.meta.namespace, name=asset.meta.name
    )


def _ledger(identity: Mapping[str, Any]) -> dispatch_pb2.IdentityLedger:
    suspected_at = identity.get("suspectedAt")
    ledger = dispatch_pb2.IdentityLedger(
        quarantine=(identity.get("quarantine") or {}).get("reason", ""),
        suspected_us=parse_instant(suspected_at) if suspected_at else 0,
    )
    for field in ("previous", "current", "next"):
        known = identity.get(field)
        if not known:
            continue
        entry = getattr(ledger, field)
        entry.serial_number = known["serialNumber"]
        entry.public_key_sha256 = known["publicKeySHA256"]
        if "acceptedUntil" in known:
            entry.accepted_until_us = parse_instant(known["acceptedUntil"])
    return ledger
