"""What gateways are to hold of an object, put into the desired state."""

from collections.abc import Mapping
from typing import Any

import structlog

from derops.wire.v1 import control_pb2
from derops_operator.gateways import wire
from derops_operator.gateways.desired import Desired
from derops_operator.reconciling.actions import Submit
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.objects import Meta

_log = structlog.get_logger("gateways")


def give_asset(desired: Desired, asset: Asset, identity: Mapping[str, Any] | None = None) -> None:
    """Have gateways hold an asset; without an identity with the one that its status has."""
    known = asset.identity if identity is None else identity
    desired.put_asset(wire.asset_message(asset, known))


def submit(desired: Desired, dispatch: Dispatch, asset: Asset | None, order: Submit) -> None:
    """Give a dispatch to the gateways, after its asset; it stays with the asset it began on."""
    asset_uid = desired.asset_uid_of(dispatch.meta.uid)
    is_new = asset_uid is None and dispatch.submitted_us is None
    is_withdrawn = order.cancelled and not desired.is_cancelled(dispatch.meta.uid)
    if asset_uid is None:
        if asset is None:
            return
        asset_uid = asset.meta.uid
        if not desired.has_asset(asset_uid):
            give_asset(desired, asset)
    desired.put_dispatch(wire.dispatch_message(dispatch, asset_uid, order))
    if is_new:
        _log.info("dispatch.submitted", **dispatch.log_fields)
    if is_withdrawn:
        _log.info("dispatch.withdrawn", **dispatch.log_fields, reason=order.cancel_reason)


def keep_held(desired: Desired, meta: Meta, asset_name: str) -> None:
    """Have gateways keep what they hold: a snapshot without it would revert a device.

    This does not fail whatever the object says: what fits into no message of its asset's name is
    told as question marks.
    """
    known = asset_name.encode(errors="replace").decode()
    desired.put_unread(control_pb2.Unread(uid=meta.uid, namespace=meta.namespace, asset_name=known))
