"""Dispatches on their way to agents: which are to be written, and which the disk says were.

The disk notes a write before it happens. The operator is told in the step that writes.
"""

from asyncio import Future, shield
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

import structlog

from derops.log_fields import wire_dispatch_fields
from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_headend.fleet.desired import NEVER, DesiredState, Written
from derops_headend.gateway.current_operator import CurrentOperator
from derops_headend.gateway.desired_store import DesiredStore
from derops_headend.group_commit import GroupCommit

_log = structlog.get_logger("deliveries")


class Deliveries:
    """Whether and when this replica first wrote each dispatch to an agent.

    Args:
        desired: The state that is served.
        store: Notes the first write of each dispatch.
        operator: Is told of first writes.
        now_us: The wall clock.
    """

    def __init__(
        self,
        desired: DesiredState,
        store: DesiredStore,
        operator: CurrentOperator,
        now_us: Callable[[], int],
    ) -> None:
        self._desired, self._operator, self._now_us = desired, operator, now_us
        self.writes: GroupCommit[tuple[str, Written]] = GroupCommit(store.record)
        self._noting: dict[str, Future[None]] = {}

    def note_stored(self, dispatches: Iterable[dispatch_pb2.Dispatch]) -> None:
        """Tell of dispatches that are on the disk, and were not held before."""
        for dispatch in dispatches:
            _log.info("dispatch.stored", **wire_dispatch_fields(dispatch))

    def revision(self) -> agent_pb2.Revision:
        """Return the revision of the state that is served; there must be one."""
        revision = self._desired.revision
        assert revision is not None  # noqa: S101  # agents are admitted only then
        return agent_pb2.Revision(
            era=revision.era,
            operator_start_ms=revision.operator_start_ms,
            counter=revision.version,
        )

    def to_write(self, asset_uid: str) -> list[dispatch_pb2.Dispatch]:
        """Return the dispatches of an asset that a stream begins with.

        Claim them in the same step: otherwise a dispatch that is withdrawn in between would be sent
        although the operator was told that it never was.
        """
        return [
            dispatch
            for dispatch in self._desired.dispatches_of(asset_uid)
            if self._desired.may_be_written(dispatch.uid)
        ]

    async def claim(self, dispatch_uids: Sequence[str], ledger_id: str) -> None:
        """Note on disk that dispatches are about to be written to a stream."""
        begun = [uid for uid in dispatch_uids if self._desired.written(uid) is NEVER]
        for uid in dispatch_uids:
            first = self._desired.mark_written(uid, self._now_us(), ledger_id)
            if first is not None:
                self._noting[uid] = self.writes.put((uid, first))
                self._noting[uid].add_done_callback(partial(self._forget_noting, uid))
        # Notes of other streams too. Shielded: others may still wait when this stream ends.
        for noting in [self._noting[uid] for uid in dispatch_uids if uid in self._noting]:
            await shield(noting)
        for uid in begun:
            if (dispatch := self._desired.dispatch(uid)) is not None:
                _say_written(dispatch)

    async def claim_offered(
        self, dispatch_uid: str, ledger_id: str
    ) -> dispatch_pb2.Dispatch | None:
        """Return a dispatch that was offered, to be written in the step that gets it.

        None = it is not to be written any more. The operator is told before the write: a dispatch
        may arrive even if its write fails.
        """
        if not self._desired.may_be_written(dispatch_uid):
            return None
        is_known = self._desired.written(dispatch_uid) is not NEVER
        await self.claim([dispatch_uid], ledger_id)
        dispatch = self._desired.dispatch(dispatch_uid)
        if dispatch is None:
            return None
        self.tell(dispatch_uid)
        if is_known and dispatch.cancelled:
            _say_written(dispatch)
        return self._desired.as_written(dispatch, ledger_id)

    def plan_writes(
        self,
        messages: Iterable[control_pb2.OperatorMessage],
        ledger_of: Callable[[str], str | None],
    ) -> dict[str, Written]:
        """Return the first writes that follow from changes: one commit serves both.

        Args:
            messages: Changes that are about to be stored.
            ledger_of: Returns the ledger of an asset's live stream; None = it has no stream.
        """
        now_us = self._now_us()
        writes: dict[str, Written] = {}
        for message in messages:
            uid = message.dispatch.uid
            writes.pop(uid, None)  # its last state in the group decides
            ledger_id = ledger_of(message.dispatch.asset_uid)
            if ledger_id is not None and self._desired.may_be_first_written(message.dispatch):
                writes[uid] = Written(written_us=now_us, ledger_id=ledger_id)
        return writes

    def owner(
        self, asset: dispatch_pb2.AssetId, ledger_id: str, dispatch_uid: str
    ) -> dispatch_pb2.AssetId | None:
        """Return the asset in whose name an agent may report on a dispatch; None = it may not.

        A dispatch that is not held here is settled, or never was. It counts as the agent's own: the
        report goes into the history of its own asset, and the operator knows which Dispatch is
        meant. An asset that was created anew under its name reports for the earlier one, if this
        replica first wrote the dispatch to the very ledger that reports now.
        """
        dispatch = self._desired.dispatch(dispatch_uid)
        if dispatch is None or dispatch.asset_uid == asset.uid:
            return asset
        same_name = (dispatch.namespace, dispatch.asset_name) == (asset.namespace, asset.name)
        if not same_name or self._desired.written(dispatch_uid).ledger_id != ledger_id:
            return None
        return dispatch_pb2.AssetId(
            uid=dispatch.asset_uid, namespace=asset.namespace, name=asset.name
        )

    def tell(self, dispatch_uid: str) -> None:
        """Tell the operator whether and when this replica first wrote a dispatch."""
        message = self._message(dispatch_uid)
        if message is not None:
            self._operator.tell(message)

    def everything(self) -> Iterator[control_pb2.ReplicaMessage]:
        """Yield for each dispatch whether and when it was first written, as of its turn."""
        for uid in [each.uid for each in self._desired.dispatches()]:
            message = self._message(uid)
            if message is not None:
                yield message

    def _message(self, dispatch_uid: str) -> control_pb2.ReplicaMessage | None:
        dispatch = self._desired.dispatch(dispatch_uid)
        if dispatch is None:
            return None
        written = self._desired.written(dispatch_uid)
        return control_pb2.ReplicaMessage(
            delivery=control_pb2.Delivery(
                dispatch_uid=dispatch.uid,
                generation=dispatch.generation,
                written_us=written.written_us,
                ledger_id=written.ledger_id,
            )
        )

    def _forget_noting(self, dispatch_uid: str, noting: Future[None]) -> None:
        if self._noting.get(dispatch_uid) is noting:
            del self._noting[dispatch_uid]


def _say_written(dispatch: dispatch_pb2.Dispatch) -> None:
    fields = wire_dispatch_fields(dispatch)
    _log.info("dispatch.written", **fields, cancelled=dispatch.cancelled)


def without_identity(asset: dispatch_pb2.Asset) -> dispatch_pb2.Asset:
    """Return an asset as its agent may see it: the ledger is the gateway's alone."""
    visible = dispatch_pb2.Asset()
    visible.CopyFrom(asset)
    visible.ClearField("identity")
    return visible
