"""What the history in the database is told: the headend's transitions in stored statuses.

Agents send their own.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from derops.lifecycle import Phase
from derops.schedules import SECOND_US
from derops.transitions import Actor
from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_operator.gateways.wire import asset_id
from derops_operator.resources.assets import Asset
from derops_operator.resources.dispatches import UNKNOWN_CREATOR, Dispatch
from derops_operator.resources.instants import parse_instant

_AGAIN_US = 24 * 3600 * SECOND_US
"""For how long before the last end that was stored dispatches are told again at each start."""


class WaitingHistory:
    """Transitions that wait for a gateway, a bounded number of them: each namespace has a share.

    Whoever may write the status of Dispatches makes transitions, as many as they like.
    """

    def __init__(self, limit: int) -> None:
        self._limit, self._count = limit, 0
        self._waiting: OrderedDict[str, deque[control_pb2.HeadendTransition]] = OrderedDict()

    def __len__(self) -> int:
        return self._count

    def put(
        self, transition: control_pb2.HeadendTransition
    ) -> control_pb2.HeadendTransition | None:
        """Keep a transition; return the oldest of the namespace that has most, if it has to go."""
        self._waiting.setdefault(transition.asset.namespace, deque()).append(transition)
        self._count += 1
        if self._count <= self._limit:
            return None
        return self._take(max(self._waiting, key=lambda each: len(self._waiting[each])))

    def first(self) -> control_pb2.HeadendTransition | None:
        """Return the one that is to be told next; those of a namespace are in their order."""
        return next((each[0] for each in self._waiting.values()), None)

    def pop(self) -> control_pb2.HeadendTransition:
        """Let go of the one that was to be told next; there must be one."""
        return self._take(next(iter(self._waiting)))

    def _take(self, namespace: str) -> control_pb2.HeadendTransition:
        own = self._waiting[namespace]
        taken = own.popleft()
        if not own:
            del self._waiting[namespace]
        self._count -= 1
        return taken


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
        # If anybody could say who ordered it, anybody could say by which call.
        request_id=dispatch.request_id if dispatch.created_by != UNKNOWN_CREATOR else "",
    )
