"""What decides about a device is a function of what it is given."""

from collections import Counter
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from tests.agent.fakes import T0, Agent, S, asset, order

from derops_agent.asset.setpoints import evidence, inquiry, outcome, plan

DECISIONS: list[tuple[ModuleType, str]] = [
    (plan, "plan_next"),
    (inquiry, "plan_look"),
    (inquiry, "judge_look"),
    (inquiry, "judge_doubtful"),
    (evidence, "judge"),
    (outcome, "note_written"),
    (outcome, "judge_unconfirmed"),
]


def twice(decide: Callable[..., Any], counts: Counter[str]) -> Callable[..., Any]:
    """Return ``decide``, asked two times whenever it is asked once."""

    def decided(*facts: Any, **more: Any) -> Any:
        before = repr((facts, more))
        first, second = decide(*facts, **more), decide(*facts, **more)
        assert repr((facts, more)) == before, f"{decide.__name__} changed what it was given"
        assert first == second, f"{decide.__name__} decided something else the second time"
        counts[decide.__name__] += 1
        return first

    return decided


async def test_a_decision_changes_nothing_that_it_is_given_and_is_the_same_again(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: Counter[str] = Counter()
    for module, name in DECISIONS:
        monkeypatch.setattr(module, name, twice(getattr(module, name), counts))
    await agent.give(asset(max_ramp_watts_per_second=1000))
    for number in range(6):
        start_us, watts = T0 + (10 + number * 60) * S, 3000 + number
        await agent.give(order(f"d{number}", start_us=start_us, watts=watts, duration_seconds=30))
    for fail in ["", "ignore", "acted", "timeout", "refuse", "broken"]:
        await agent.wait(8, step=1)
        agent.device.fail = fail
        await agent.wait(22, step=1)
        agent.device.fail = ""
        await agent.wait(30, step=1)

    assert set(counts) == {name for _, name in DECISIONS}
    assert {r.phase for r in agent.reports} >= {"Acked", "Active", "Complete", "Failed"}
