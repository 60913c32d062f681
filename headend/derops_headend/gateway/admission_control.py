"""Gives telemetry its credit: at once while the loop keeps up, else in turn and at a pace.

The pace bounds what comes in. An agent that sends less than its credit does not overload the
gateway: it hears at once that its batch is durable. An agent that uses all its credit hears of many
batches in one message, with its next credit.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from derops_headend.fleet.pace import Pace
from derops_headend.fleet.telemetry import window_of
from derops_headend.gateway import metrics

TURN_SECONDS = 0.01


class Creditor(Protocol):
    """A stream that may be given credit."""

    @property
    def is_calm(self) -> bool:
        """Whether all that came is durable, and its agent may send more."""

    def give_credit(self, window: int) -> None:
        """Tell the agent what is acknowledged, and how many batches it may have on their way.

        A window of 0 takes back nothing that was promised.
        """


class AdmissionControl:
    """Decides when a stream hears of its next credit, and how much that is.

    Args:
        fill: Returns the share of the log's bound that is taken.
        is_crowded: Tells whether so much waits for the log that little more may come.
    """

    def __init__(
        self, fill: Callable[[], float], is_crowded: Callable[[], bool] = lambda: False
    ) -> None:
        self._fill, self._is_crowded = fill, is_crowded
        self._pace = Pace()
        self._asking: dict[Creditor, None] = {}  # ordered sets: first come, first served
        self._waiting: dict[Creditor, None] = {}
        self._without_room: set[Creditor] = set()
        self._received = 0
        self._pressed = False
        self._scheduled = False

    def count(self) -> None:
        """Note that a telemetry message was taken."""
        self._received += 1

    def request(self, stream: Creditor) -> None:
        """Give ``stream`` its acknowledgement after this step, and its credit at its turn.

        One message acknowledges all batches that become durable in one step of the loop.
        """
        self._without_room.discard(stream)
        self._asking[stream] = None
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._serve)

    def forget(self, stream: Creditor) -> None:
        """Drop a stream that ended."""
        self._asking.pop(stream, None)
        self._waiting.pop(stream, None)
        self._without_room.discard(stream)

    async def run(self) -> None:
        """Adapt the pace, and serve the streams that wait, until cancelled."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(TURN_SECONDS)
            now = loop.time()
            self._pace.turn(
                seconds=now - before,
                late_seconds=now - before - TURN_SECONDS,
                received=self._received,
                waiting=bool(self._waiting),
            )
            before, self._received = now, 0
            fill = self._fill()
            if window_of(fill):
                self._waiting |= dict.fromkeys(self._without_room)
                self._without_room.clear()
            self._serve()
            metrics.LOG_FILL.set(fill)
            metrics.CREDIT_WAITING.set(len(self._waiting))

    def _serve(self) -> None:
        self._scheduled = False
        window = window_of(self._fill())
        if self._pressed or self._is_crowded():  # more is on its way than can be served
            window = min(window, 1)
        while self._waiting and self._pace.take():
            stream = next(iter(self._waiting))
            del self._waiting[stream]
            self._give(stream, window)
        asking, self._asking = self._asking, {}
        for stream in asking:
            if not self._waiting and self._pace.take():
                self._give(stream, window)
            elif stream.is_calm:
                stream.give_credit(0)
            else:
                self._waiting[stream] = None  # a stream that waits already keeps its place
        self._pressed = bool(self._waiting)

    def _give(self, stream: Creditor, window: int) -> None:
        if not window:
            self._without_room.add(stream)
        stream.give_credit(window)
