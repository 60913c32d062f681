"""Whatever comes in whatever order: no unowned setpoint is left, nothing ends or runs twice."""

import asyncio
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.agent.fakes import Agent, S, order

from derops.lifecycle import Phase
from derops_agent.asset.inbox import Settled
from derops_agent.ports import Setpoints

NUMBERS = st.integers(0, 3)
ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("order"), NUMBERS, st.integers(-20, 60), st.integers(1, 60), st.integers(0, 2)
        ),
        st.tuples(st.just("cancel"), NUMBERS),
        st.tuples(st.just("settled"), NUMBERS),
        st.tuples(st.just("time"), st.integers(0, 40)),
        st.tuples(st.just("clock"), st.integers(-30, 30)),
        st.tuples(st.just("restart"), st.integers(0, 90), st.booleans()),
        st.tuples(st.just("snapshot"), st.sets(NUMBERS)),
        st.tuples(st.just("device"), st.sampled_from(["", "timeout", "refuse", "acted"])),
        st.tuples(st.just("acknowledge")),
    ),
    max_size=25,
)


class World:
    """The agent, and what the headend has sent so far."""

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        self.sent: dict[int, Any] = {}

    async def act(self, kind: str, *facts: Any) -> None:
        await getattr(self, f"on_{kind}")(*facts)

    async def on_order(self, number: int, start: int, duration: int, primacy: int) -> None:
        if number not in self.sent:
            self.sent[number] = order(
                f"d{number}",
                watts=1000 + number,
                start_us=self.agent.clock.wall_us + start * S,
                duration_seconds=duration,
                start_deadline_seconds=max(1, duration // 2),
                primacy=primacy,
                created_us=number,
            )
        await self.agent.give(self.sent[number])

    async def on_cancel(self, number: int) -> None:
        if number in self.sent:
            self.sent[number].cancelled = True
            self.sent[number].generation = 2
            await self.agent.give(self.sent[number])

    async def on_settled(self, number: int) -> None:
        await self.agent.give(Settled(uid=f"d{number}"))

    async def on_time(self, seconds: int) -> None:
        await self.agent.wait(seconds, step=1)

    async def on_clock(self, seconds: int) -> None:
        self.agent.clock.wall_us += seconds * S
        await self.agent.wait(0.1)

    async def on_restart(self, seconds: int, reboot: bool) -> None:
        await self.agent.restart(down_seconds=seconds, reboot=reboot)

    async def on_snapshot(self, numbers: set[int]) -> None:
        await self.agent.snapshot(*[self.sent[n] for n in sorted(numbers) if n in self.sent])

    async def on_device(self, fail: str) -> None:
        self.agent.device.fail = fail

    async def on_acknowledge(self) -> None:
        await self.agent.acknowledge_all()

    def _awaits_revert(self, uid: str) -> bool:
        """Tell whether it failed, and its device was not there to revert, or did not."""
        report = self.agent.report(uid)
        may_be_there = report.applied_us or report.evidence == "Unanswered"
        return bool(may_be_there) and not report.reverted_us

    def check(self) -> None:
        ends: dict[str, str] = {}
        for report in self.agent.reports:
            phases = [step.phase for step in report.transitions]
            terminal = [phase for phase in phases if Phase(phase).terminal]
            assert len(terminal) <= 1, f"two terminal phases: {report}"
            assert phases.count("Active") <= 1, f"ran twice: {report}"
            if terminal:
                end = ends.setdefault(report.dispatch_uid, terminal[0])
                assert end == terminal[0] == report.phase, f"a terminal phase changed: {report}"
            else:
                assert report.dispatch_uid not in ends, f"came back to life: {report}"
        held = self.agent.device.held.active_power_watts
        told_before = {uid for uid in ends if self._awaits_revert(uid)}
        for uid in ends.keys() - told_before:
            assert held != 1000 + int(uid[1:]), f"{uid} has ended and the device still holds it"


async def play(actions: list[Any], folder: Path) -> None:
    agent = await Agent(folder).start()
    agent.clock.ntp = True
    world = World(agent)
    try:
        for action in actions:
            await world.act(*action)
            world.check()
        agent.device.fail = ""
        await agent.wait(400, step=5)
        world.check()
        assert agent.device.held == Setpoints(active_power_watts=0)
        for execution in agent.controller.journal.values():
            assert execution.phase.terminal
            assert not world._awaits_revert(execution.order.uid)
    finally:
        agent.ledger.close()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS)
def test_random_interleavings_leave_nothing_behind(actions: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(play(actions, Path(folder)))
