"""One turn, whether or not the ledger takes anything: its price, and what it leaves alone."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from tests.agent.fakes import T0, Agent, S, order

from derops.lifecycle import Phase
from derops.wire.v1 import agent_pb2
from derops_agent.asset.inbox import Acknowledged, Change
from derops_agent.clock import Moment
from derops_agent.execution import durability
from derops_agent.execution.state import Effect, Execution, Stage
from derops_agent.execution.wire import read_order
from derops_agent.ports import Reading, Reversion, Setpoints

NOW = Moment(wall_us=T0, monotonic_us=S)
CALLS_OF_A_DISPATCH = 5
"""Of the ledger: to accept it, the intent and the outcome of its start, and those of its end."""


class Disk:
    """Counts what the ledger is asked to store, and refuses what it is told to."""

    def __init__(self, agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self.refuses: Callable[[int], bool] = lambda _: False
        self.error: sqlite3.Error = sqlite3.OperationalError("database or disk is full")
        save = agent.ledger.save

        def counted(*facts: Any, **more: Any) -> None:
            self.calls += 1
            if self.refuses(self.calls):
                raise self.error
            save(*facts, **more)

        monkeypatch.setattr(agent.ledger, "save", counted)

    @contextmanager
    def counting(self) -> Iterator[Callable[[], int]]:
        """Count the calls within the block."""
        before = self.calls
        yield lambda: self.calls - before


@pytest.fixture
def disk(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(agent, monkeypatch)


async def steps(agent: Agent, seconds: int) -> None:
    for _ in range(seconds):
        agent.clock.pass_seconds(1)
        agent.controller.take(Reading(at_us=agent.clock.wall_us, values={}))
        await agent.controller.turn()


async def test_a_plain_dispatch_costs_five_commits_and_two_writes(agent: Agent, disk: Disk) -> None:
    price = []
    for seconds in (0, 60, 100):
        calls, writes = disk.calls, len(agent.device.writes)
        await (agent.wait(seconds) if seconds else agent.give(order()))
        price.append((disk.calls - calls, len(agent.device.writes) - writes))

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert price == [(1, 0), (2, 1), (2, 1)]


async def test_a_ledger_that_takes_nothing_is_tried_once_a_turn(agent: Agent, disk: Disk) -> None:
    await agent.give(order(), order("d2", mode="LoadLimit", watts=3000))
    await agent.wait(60)
    writes = len(agent.device.writes)
    disk.refuses = lambda _: True
    for seconds in (1, 98, 1, 1):
        with disk.counting() as calls:
            agent.controller.take(Change(part=order("d3", start_us=T0 + 300 * S)))
            await agent.wait(seconds)
        assert calls() == 1

    assert len(agent.device.writes) == writes + 1, "both ended, at once"


async def test_a_ledger_that_does_not_say_why_it_fails_loses_no_order(
    agent: Agent, disk: Disk
) -> None:
    disk.error, disk.refuses = sqlite3.OperationalError(), lambda _: True
    agent.controller.take(Change(part=order()))
    await agent.controller.turn()
    assert agent.ledger_complaints == ["OperationalError"]

    disk.refuses = lambda _: False
    await agent.controller.turn()
    assert agent.outcome() == ("Acked", "Accepted")


@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("call", range(1, CALLS_OF_A_DISPATCH + 1))
async def test_a_dispatch_outlives_each_commit_that_fails(
    agent: Agent, disk: Disk, monkeypatch: pytest.MonkeyPatch, call: int, turns: int
) -> None:
    write, stored = agent.device.write, []

    async def write_and_look(
        setpoints: Setpoints, reversion: Reversion | None = None
    ) -> int | None:
        if setpoints.active_power_watts == 5000:
            stored.append(agent.ledger.unsettled()[0].execution.stage)
        return await write(setpoints, reversion)

    monkeypatch.setattr(agent.device, "write", write_and_look)
    disk.refuses = lambda number: call <= number < call + turns
    agent.controller.take(Change(part=order(start_us=T0 + 2 * S, duration_seconds=5)))
    await agent.controller.turn()
    await steps(agent, 20)

    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.powers == [0, 5000, 0]
    assert set(stored) == {Stage.APPLYING}, "its start was on the disk before it was written"
    assert [step.phase for step in agent.report().transitions] == ["Acked", "Active", "Complete"]
    late_seconds = turns if call in (1, 2) else 0
    assert agent.report().applied_us <= T0 + (2 + late_seconds) * S
    assert agent.report().reverted_us == T0 + 7 * S
    told = [r.phase for r in agent.reports]
    assert told == sorted(told, key=["Acked", "Active", "Complete"].index)
    assert agent.ledger_complaints == ["database or disk is full", ""]


async def test_a_start_that_cannot_be_stored_waits_and_says_for_how_long_if_it_is_missed(
    agent: Agent, disk: Disk
) -> None:
    await agent.give(order())
    await agent.wait(59, step=1)
    writes = len(agent.device.writes)
    disk.refuses = lambda _: True
    await steps(agent, 60)
    assert agent.controller.journal["d1"].stage is Stage.WAITING
    assert len(agent.device.writes) == writes

    disk.refuses = lambda _: False
    await steps(agent, 1)
    assert agent.outcome() == ("Failed", "StartDeadlineExceeded")
    assert "the agent could store nothing for 61 s" in agent.report().message


async def test_no_value_stays_for_a_next_window_that_cannot_begin(agent: Agent, disk: Disk) -> None:
    await agent.give(order(), order("d2", start_us=T0 + 165 * S))
    await agent.wait(158, step=1)
    disk.refuses = lambda _: True
    await steps(agent, 3)
    assert agent.device.held.active_power_watts == 0

    disk.refuses = lambda _: False
    await steps(agent, 10)
    assert agent.outcome() == ("Complete", "WindowEnded")
    assert agent.outcome("d2") == ("Active", "Applied")


@pytest.mark.parametrize("seconds", range(70, 76))
async def test_what_is_found_on_the_device_is_stored_before_it_is_written_over(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, seconds: int
) -> None:
    stored = []
    write = agent.device.write

    async def look_and_write(
        setpoints: Setpoints, reversion: Reversion | None = None
    ) -> int | None:
        if agent.device.held.active_power_watts == 5000:
            [first] = [e for e in agent.ledger.unsettled() if e.execution.order.uid == "d1"]
            stored.append((first.execution.applied_us > 0, first.report.applied_us > 0))
        return await write(setpoints, reversion)

    other = order("d2", mode="LoadLimit", watts=3000, start_us=T0 + seconds * S)
    await agent.give(order(start_deadline_seconds=5), other)
    await agent.wait(59, step=1)
    agent.device.fail = "deaf"
    await agent.wait(seconds - 60, step=1)
    assert agent.outcome() == ("Failed", "DeviceOffline")
    agent.device.fail = ""
    agent.device.held = Setpoints(active_power_watts=5000)
    monkeypatch.setattr(agent.device, "write", look_and_write)
    await agent.wait(5, step=1)

    assert agent.outcome("d2") == ("Active", "Applied")
    assert agent.device.held.active_power_watts == 0
    assert stored == [(True, True)]


async def test_a_ledger_that_fails_before_a_write_leaves_the_start_to_the_next_turn(
    agent: Agent, disk: Disk
) -> None:
    other = order("d2", mode="LoadLimit", watts=3000, start_us=T0 + 72 * S)
    await agent.give(order(start_deadline_seconds=5), other)
    await agent.wait(59, step=1)
    agent.device.fail = "deaf"
    await agent.wait(12, step=1)
    agent.device.fail = ""
    agent.device.held = Setpoints(active_power_watts=5000)
    writes, intent = len(agent.device.writes), disk.calls + 1
    disk.refuses = lambda call: call > intent
    await steps(agent, 1)
    assert agent.controller.journal["d2"].stage is Stage.APPLYING
    assert len(agent.device.writes) == writes

    await steps(agent, 1)
    assert agent.device.held == Setpoints(active_power_watts=0)
    disk.refuses = lambda _: False
    await steps(agent, 2)
    assert agent.outcome("d2") == ("Active", "Applied")
    assert agent.report("d1").applied_us > 0


async def test_what_is_new_is_not_judged_while_it_cannot_be_stored(
    agent: Agent, disk: Disk
) -> None:
    disk.refuses = lambda _: True
    handled = agent.controller.revisions.handled
    newer = agent_pb2.Revision(operator_start_ms=1, counter=9)
    agent.controller.take(Change(part=order(watts=9_000_000), revision=newer))
    await steps(agent, 2)
    assert agent.reports == []
    assert list(agent.controller.journal) == []
    assert agent.controller.revisions.handled == handled
    assert agent.controller.revisions.heard == newer

    disk.refuses = lambda _: False
    await steps(agent, 1)
    assert agent.outcome() == ("Rejected", "LimitExceeded")
    assert agent.controller.revisions.handled == newer


async def test_what_happened_meanwhile_is_told_once_and_in_its_order(
    agent: Agent, disk: Disk
) -> None:
    await agent.give(order(), order("d2", mode="LoadLimit", watts=3000))
    await agent.wait(70, step=1)
    told = len(agent.reports)
    disk.refuses = lambda _: True
    for uid, mode in (("d2", "LoadLimit"), ("d1", "ActivePower")):
        agent.controller.take(Change(part=order(uid, mode=mode, cancelled=True, generation=2)))
        await steps(agent, 2)
    for report in agent.reports:
        agent.controller.take(Acknowledged(sequence=report.sequence))
    await steps(agent, 1)
    assert len(agent.reports) == told

    disk.refuses = lambda _: False
    await steps(agent, 3)
    later = [(r.dispatch_uid, r.phase) for r in agent.reports[told:]]
    assert later == [("d2", "Cancelled"), ("d1", "Cancelled")]


def execution(stage: Stage, **facts: Any) -> Execution:
    phase = Phase.ACKED if stage in (Stage.WAITING, Stage.APPLYING) else Phase.ACTIVE
    return Execution(order=read_order(order()), phase=phase, stage=stage, reason="", **facts)


WAITING, APPLYING = execution(Stage.WAITING), execution(Stage.APPLYING)
HOLDING = execution(Stage.HOLDING, held_since=NOW)


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        (None, WAITING, False),
        (None, WAITING.step(Phase.REJECTED, "LimitExceeded", "", T0), False),
        (WAITING, APPLYING, False),
        (WAITING, replace(APPLYING, pending_error="it waits"), False),
        (WAITING, WAITING.step(Phase.CANCELLED, "CancelledBeforeStart", "", T0), True),
        (WAITING, replace(WAITING, target_watts=4000), True),
        (APPLYING, HOLDING, True),
        (APPLYING, replace(APPLYING, sent=NOW), True),
        (HOLDING, HOLDING.begin_ending(Phase.COMPLETE, "WindowEnded", "", T0), True),
        (HOLDING, HOLDING.stop_holding(NOW), True),
    ],
)
def test_only_beginnings_wait_for_the_disk(
    before: Execution | None, after: Execution, counts: bool
) -> None:
    assert durability.counts_unstored(before, after) is counts


@pytest.mark.parametrize(
    ("change", "progress"),
    [
        ({"confirmed": NOW}, True),
        ({"effect": Effect(within_us=5, in_a_row=2)}, True),
        ({"effect": Effect(told="True")}, False),
        ({"confirmed": NOW, "held_since": None}, False),
        ({"stage": Stage.REVERTING}, False),
    ],
)
def test_progress_is_what_nobody_is_told(change: dict[str, Any], progress: bool) -> None:
    assert durability.is_progress(HOLDING, replace(HOLDING, **change)) is progress


async def test_progress_costs_no_commit_and_is_stored_now_and_then(
    agent: Agent, disk: Disk
) -> None:
    await agent.give(order(duration_seconds=1000))
    await agent.wait(70, step=1)
    with disk.counting() as calls:
        await agent.sampled(5000, 50)
    stored = agent.ledger.unsettled()[0].execution

    assert stored.effect.within_us > 20 * S
    assert calls() <= 6, "one for the verdict, and one each ten seconds"


def test_what_goes_on_without_a_disk_is_what_the_device_may_hold() -> None:
    all_of_them = {
        str(number): each
        for number, each in enumerate(
            [
                WAITING,
                APPLYING,
                replace(APPLYING, sent=NOW),
                HOLDING,
                execution(Stage.REVERTING),
                execution(Stage.DONE),
                execution(Stage.DONE, sent=NOW),
            ]
        )
    }
    assert set(durability.under_way(all_of_them)) == {"2", "3", "4", "6"}
