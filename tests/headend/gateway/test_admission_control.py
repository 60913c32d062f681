"""Who hears of credit and acknowledgement when, while the loop has more to do than it can."""

import asyncio
from typing import Any

import pytest

from derops_headend.fleet.pace import Pace
from derops_headend.fleet.telemetry import CREDIT_BATCHES
from derops_headend.gateway.admission_control import (
    HELD_UP_SECONDS,
    TURN_SECONDS,
    AdmissionControl,
)


class Stream:
    """A stream of an agent that sends less than it may, or all."""

    def __init__(self, *, is_calm: bool) -> None:
        self.is_calm = is_calm
        self.windows: list[int] = []

    def give_credit(self, window: int) -> None:
        self.windows.append(window)


async def _spent() -> AdmissionControl:
    """Return a control that gives no more credit for now."""
    control = AdmissionControl(fill=lambda: 0.0)
    pace = Pace()
    while pace.take():
        control.request(Stream(is_calm=False))
    await asyncio.sleep(0)
    return control


async def test_who_sends_less_than_it_may_is_acknowledged_whatever_the_pace() -> None:
    control = await _spent()
    greedy, calm = Stream(is_calm=False), Stream(is_calm=True)

    for stream in (greedy, calm):
        control.request(stream)
    await asyncio.sleep(0)

    assert calm.windows == [0], "acknowledged, and nothing more is let in"
    assert greedy.windows == []


async def test_who_waits_for_credit_keeps_its_place_and_is_served_once() -> None:
    control = await _spent()
    first, second = Stream(is_calm=False), Stream(is_calm=False)
    for stream in (first, second, first):
        control.request(stream)
        await asyncio.sleep(0)
    assert (first.windows, second.windows) == ([], [])

    serving = asyncio.create_task(control.run())
    async with asyncio.timeout(10):
        while not second.windows:
            await asyncio.sleep(0)
    serving.cancel()

    assert len(first.windows) == len(second.windows) == 1


async def test_a_stream_that_ended_is_told_nothing() -> None:
    control, gone = AdmissionControl(fill=lambda: 0.0), Stream(is_calm=True)
    control.request(gone)
    control.forget(gone)
    await asyncio.sleep(0)

    assert gone.windows == []


async def test_while_much_waits_for_the_log_little_more_is_let_in() -> None:
    crowded = True
    control, stream = AdmissionControl(lambda: 0.0, lambda: crowded), Stream(is_calm=False)
    control.request(stream)
    await asyncio.sleep(0)
    crowded = False
    control.request(stream)
    await asyncio.sleep(0)

    assert stream.windows == [1, CREDIT_BATCHES]


HOLD_UPS = [
    pytest.param({"fill": 0.96}, id="the log is full"),
    pytest.param({"crowded": True}, id="much waits for the log"),
    pytest.param({"append": 1.5}, id="an append does not end"),
]


@pytest.mark.parametrize("hold_up", HOLD_UPS)
async def test_how_long_all_telemetry_was_taken_counts_from_the_last_hold_up(
    hold_up: dict[str, Any],
) -> None:
    state: dict[str, Any] = {"fill": 0.0, "crowded": False, "append": 0.5}
    control = AdmissionControl(
        lambda: state["fill"], lambda: state["crowded"], lambda: state["append"]
    )
    assert control.free_us == 0, "nothing is known yet"
    running = asyncio.create_task(control.run())
    async with asyncio.timeout(10):
        while control.free_us < 50_000:
            await asyncio.sleep(TURN_SECONDS)
        before = dict(state)
        state |= hold_up
        while control.free_us:
            await asyncio.sleep(TURN_SECONDS)
        state |= before
        while not control.free_us:
            await asyncio.sleep(TURN_SECONDS)
        assert control.free_us < 10_000_000
    running.cancel()


async def test_streams_that_wait_for_a_moment_are_no_hold_up_and_for_long_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Pace, "take", lambda _: False)
    control = AdmissionControl(fill=lambda: 0.0)
    control.request(Stream(is_calm=False))
    begun = asyncio.get_running_loop().time()
    running = asyncio.create_task(control.run())
    async with asyncio.timeout(30):
        while not control.free_us:
            await asyncio.sleep(TURN_SECONDS)
        while control.free_us:
            await asyncio.sleep(TURN_SECONDS)
        assert asyncio.get_running_loop().time() - begun > HELD_UP_SECONDS
        monkeypatch.undo()
        while not control.free_us:
            await asyncio.sleep(TURN_SECONDS)
    running.cancel()
