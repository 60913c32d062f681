"""Whose word about a Dispatch counts. Pure."""

from collections.abc import Collection
from enum import StrEnum

from derops.wire.v1 import control_pb2
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch


class Strange(StrEnum):
    """Why a report counts for no Dispatch."""

    UNKNOWN_DISPATCH = "UnknownDispatch"
    """There is no Dispatch of its uid: it is deleted, or never was."""

    ANOTHER_ASSET = "AnotherAsset"
    """The agent of another asset says it."""

    ANOTHER_LEDGER = "AnotherLedger"
    """The asset was created anew under its name, and this is not the disk that was given it."""


def distrust(
    message: control_pb2.AgentReport,
    dispatch: Dispatch | None,
    asset: Asset | None,
    *,
    given_to: str | None,
    ledger_ids: Collection[str],
) -> Strange | None:
    """Return why a report does not count, or None.

    Args:
        message: The report, with the asset whose certificate its agent showed; an older gateway
            names only the uid of that asset.
        dispatch: What the report is about; None = there is none.
        asset: Of the dispatch's asset name, as it is now; None = there is none.
        given_to: Uid of the asset that the dispatch was given to the gateways for; None = it is
            not given to them.
        ledger_ids: That gateways say they wrote it to.
    """
    if dispatch is None:
        return Strange.UNKNOWN_DISPATCH
    given_uid = given_to
    if given_uid is None and asset is not None and not dispatch.is_of_an_earlier(asset):
        given_uid = asset.meta.uid
    if not _is_own(message, dispatch, asset, given_uid):
        return Strange.ANOTHER_ASSET
    anew = message.asset_uid != given_uid
    if anew and ledger_ids and message.report.ledger_id not in ledger_ids:
        return Strange.ANOTHER_LEDGER
    return None


def _is_own(
    message: control_pb2.AgentReport,
    dispatch: Dispatch,
    asset: Asset | None,
    given_uid: str | None,
) -> bool:
    """Tell whether the agent of the dispatch's own asset says it, by name or else by uid."""
    speaker = (message.namespace, message.asset_name)
    if any(speaker):
        return speaker == (dispatch.meta.namespace, dispatch.asset_name)
    return message.asset_uid in {given_uid, asset.meta.uid if asset is not None else None}
