"""What the history in the database is told: the headend's transitions in stored statuses.

Agents send their own.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from derops.lifecycle import Phase
from derops.schedules import SECOND_US
from derops.transitions import Actor
from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_operator.gateways.wire import asset_id
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import Dispatch
from derops_operator.resources.instants import parse_instant

_AGAIN_US = 24 * 3600 * SECOND_US
"""For how long before the last end that was stored dispatches are told again at each start."""


def last_end_us(dispatches: Iterable[Dispatch], now_us: int) -> int:
    """Return when a dispatch last ended by what is stored; ``now_us`` where none says that.

    No process was there since: that would have told again what was stored before.
    """
    ends_us = []
    for dispatch in dispatches:
        if dispatch.phase.terminal:
            with suppress(KeyError, ValueError):  # a status that was made up
                ends_us.append(dispatch.completed_us)
    return min(now_us, max(ends_us, default=now_us))


def may_be_untold(dispatch: Dispatch, last_us: int) -> bool:
    """Tell whether the process before this one may have stored what it did not tell.

    Args:
        dispatch: As it is stored.
        last_us: When the last of all dispatches ended.

    Raises:
        KeyError: It has ended, and its status does not say when.
    """
    since_us = last_us - _AGAIN_US
    if not dispatch.phase.terminal:
        return True
    return dispatch.latest_end_us > since_us or dispatch.completed_us > since_us


def history_messages(
    dispatch: Dispatch, asset: Asset | None, known: Sequence[Mapping[str, Any]] = ()
) -> Iterator[control_pb2.HeadendTransition]:
    """Yield the transitions; those in ``known`` were told before."""
    for line in dispatch.history:
        if line["actor"] != Actor.AGENT and line not in known:
            yield _message(dispatch, asset, line)


def _message(
    dispatch: Dispatch, asset: Asset | None, line: Mapping[str, Any]
) -> control_pb2.HeadendTransition:
    return control_pb2.HeadendTransition(
        asset=(
            asset_id(asset)
            if asset is not None
            else dispatch_pb2.AssetId(namespace=dispatch.meta.namespace, name=dispatch.asset_name)
        ),
        dispatch_uid=dispatch.meta.uid,
        dispatch_name=dispatch.meta.name,
        transition=dispatch_pb2.Transition(
            phase=str(Phase(line["phase"])),
            reason=line["reason"],
            message=line["message"],
            at_us=parse_instant(line["at"]),
        ),
        created_by=dispatch.created_by,
    )
