"""What the headend orders of an asset, and withdraws: judged, and taken into the journal."""

from collections.abc import Callable, Set

import structlog

from derops.wire.v1 import agent_pb2, dispatch_pb2
from derops_agent import metrics
from derops_agent.asset.journal import Journal
from derops_agent.asset.ledger import Ledger
from derops_agent.asset.setpoints.writer import DeviceWriter
from derops_agent.asset.site_state import SiteState
from derops_agent.clock import Clock, moment
from derops_agent.execution import withdrawal
from derops_agent.execution.acceptance import judge
from derops_agent.execution.state import Execution, Order
from derops_agent.execution.wire import read_order

MAX_ORDERS = 20_000
"""Dispatches that a ledger remembers, tombstones too. Beyond, no new one is taken."""

MAX_ORDER_BYTES = 4096


class Orders:
    """Takes one asset's orders."""

    def __init__(
        self,
        journal: Journal,
        ledger: Ledger,
        known: SiteState,
        writer: DeviceWriter,
        clock: Clock,
        draw: Callable[[], float],
    ) -> None:
        self._journal, self._ledger, self._known = journal, ledger, known
        self._writer, self._clock, self._draw = writer, clock, draw
        self._log = structlog.get_logger("controller")

    async def take(
        self,
        messages: list[dispatch_pb2.Dispatch],
        *,
        asset: dispatch_pb2.Asset | None = None,
        revision: agent_pb2.Revision | None = None,
    ) -> None:
        """Accept or refuse what is new, and fold in what is known; store it with what came.

        What is new is not judged while the ledger takes nothing: it comes again.

        Args:
            messages: Dispatches.
            asset: The configuration that came with them.
            revision: The desired state that they are from.
        """
        result: dict[str, Execution] = {}
        messages = [message for message in messages if self._has_room(message)]
        for message in messages:
            if (answer := await self._answer(read_order(message))) is not None:
                result[message.uid] = answer
        self._journal.mark_present(set(result))
        await self._journal.commit(
            result,
            orders={message.uid: message for message in messages},
            asset=asset,
            revision=revision,
        )

    async def bind(self) -> None:
        """Hold what was accepted to the asset's limits as they are now."""
        now = moment(self._clock)
        silence = self._writer.state.silence(now)
        bound = withdrawal.bind(self._journal, self._known.site, now, silence)
        await self._journal.commit(bound)

    async def drop(self, uids: Set[str]) -> None:
        """Cancel what the headend no longer has; it is forgotten once its last report arrived."""
        known = uids & self._journal.keys()
        self._journal.mark_absent(known)
        now = moment(self._clock)
        await self._journal.commit(
            {uid: withdrawal.cancel(self._journal[uid], now) for uid in known}
        )

    async def _answer(self, order: Order) -> Execution | None:
        """Return what becomes of an order; None = it is not known as long as the ledger fails."""
        now = moment(self._clock)
        if order.uid not in self._journal:
            await self._journal.recall(order.uid)
        known = self._journal.get(order.uid)
        if known is not None:
            return withdrawal.order_again(known, order, now)
        if self._journal.failing:
            return None
        site = self._known.now(self._writer.state)
        return judge(order, site, now_us=now.wall_us, draw=self._draw())

    def _has_room(self, message: dispatch_pb2.Dispatch) -> bool:
        """Tell whether an order can be remembered; no honest headend has so many, or so great."""
        uid, ledger = message.uid, self._ledger
        if self._journal.failing:
            return True  # it is asked again
        known = uid in self._journal or ledger.may_have_tombstone(uid)
        full = len(self._journal) + ledger.tombstones >= MAX_ORDERS
        if known or not (full or message.ByteSize() > MAX_ORDER_BYTES):
            return True
        metrics.ORDERS_NOT_TAKEN.inc()
        self._log.error("order.not_taken", dispatch_uid=uid[:64], bytes=message.ByteSize())
        return False
