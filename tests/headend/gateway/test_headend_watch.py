"""What lies behind all agents, told to the operator: after each snapshot, and on a change."""

import asyncio
import itertools

import pytest
from tests.headend.fleet.words import word
from tests.headend.gateway.rig import PATIENCE, Operator, Rig

from derops.data_path import SharedFault
from derops.wire.v1 import control_pb2
from derops_headend.eventlog.words import FileWords
from derops_headend.gateway import headend_watch


@pytest.fixture(autouse=True)
def _look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headend_watch, "LOOK_SECONDS", 0.02)


async def wait_for(operator: Operator, **links: str) -> control_pb2.HeadendState:
    """Return the next state in which the links have these reasons; others may be there."""
    async with asyncio.timeout(PATIENCE):
        while True:
            state = await operator.read_until("headend")
            told = {each.link: each.reason for each in state.links}
            if all(told.get(link) == reason for link, reason in links.items()):
                assert isinstance(state, control_pb2.HeadendState)
                return state


async def test_what_a_writer_leaves_is_told_on_a_change_and_after_a_snapshot(
    rig: Rig, operator: Operator
) -> None:
    words = FileWords(rig.directory)

    async def speak() -> None:
        for number in itertools.count():  # it counts once it was seen to change
            await words.leave(word(left_us=number))
            await asyncio.sleep(0.01)

    speaking = asyncio.create_task(speak())
    await wait_for(operator, EventLog="", Writer="", Database="")
    speaking.cancel()

    fault = SharedFault.DATABASE_REFUSES
    await words.leave(word(fault=fault, message="password", since_us=1, left_us=9))
    state = await wait_for(operator, Database="DatabaseRefuses", Writer="")
    assert "password" in state.links[2].message

    other = rig.operator()
    await other.snapshot([], start_ms=2000)
    await wait_for(other, Database="DatabaseRefuses")


async def test_a_log_that_is_full_or_takes_nothing_is_told(rig: Rig, operator: Operator) -> None:
    rig.log.taken = 0.95
    await wait_for(operator, EventLog="LogFull")
    rig.log.taken = 0.0
    rig.log.failure = OSError("input/output error")
    await operator.say(transition=control_pb2.HeadendTransition(dispatch_uid="d"))
    state = await wait_for(operator, EventLog="LogFailing")
    assert "input/output error" in state.links[0].message
    rig.log.failure = None
    await wait_for(operator, EventLog="")
