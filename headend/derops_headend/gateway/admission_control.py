"""Gives telemetry its credit: at once while the loop keeps up, else in turn and at a pace.

The pace bounds what comes in. An agent that sends less than its credit does not overload the
gateway: it hears at once that its batch is durable. An agent that uses all its credit hears of many
batches in one message, with its next credit.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from derops.schedules import SECOND_US
from derops_headend.fleet.pace import Pace
from derops_headend.fleet.telemetry import window_of
from derops_headend.gateway import metrics

TURN_SECONDS = 0.01
HELD_UP_SECONDS = 1.0
"""A gateway keeps up while no stream waits longer for its credit, and no entry for the log."""


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
        append_seconds: Returns for how long an append to the log has been under way.
    """

    def __init__(
        self,
        fill: Callable[[], float],
        is_crowded: Callable[[], bool] = lambda: False,
        append_seconds: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self._fill, self._is_crowded, self._append_seconds = fill, is_crowded, append_seconds
        self._pace = Pace()
        self._asking: dict[Creditor, None] = {}  # ordered sets: first come, first served
        self._waiting: dict[Creditor, None] = {}
        self._without_room: set[Creditor] = set()
        self._received = 0
        self._pressed = False
        self._scheduled = False
        self._kept_up_at: float | None = None
        """When no stream waited, by the clock of the loop; None = before the first turn."""

        self._free_from: float | None = None

    @property
    def free_us(self) -> int:
        """For how long the gateway has taken all telemetry that came; 0 = it does not."""
        if self._free_from is None:
            return 0
        return round((asyncio.get_running_loop().time() - self._free_from) * SECOND_US)

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
            self._note_hold_up(now, has_room=window_of(fill) > 0)
            metrics.LOG_FILL.set(fill)
            metrics.CREDIT_WAITING.set(len(self._waiting))

    def _note_hold_up(self, now: float, *, has_room: bool) -> None:
        """Note whether all telemetry is taken: a stream that waits for a moment is no hold-up."""
        if self._kept_up_at is None or not self._waiting:
            self._kept_up_at = now
        held_up = (
            not has_room
            or self._is_crowded()
            or now - self._kept_up_at > HELD_UP_SECONDS
            or self._append_seconds() > HELD_UP_SECONDS
        )
        if held_up:
            self._free_from = None
        elif self._free_from is None:
            self._free_from = now

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
