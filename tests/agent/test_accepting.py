"""Which orders an agent takes, and what it answers to the others."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.agent.fakes import CAPABILITY, T0, Agent, S, asset, order

from derops_agent.execution.acceptance import judge
from derops_agent.execution.site import LocalLimits, Site
from derops_agent.execution.wire import read_asset, read_order


def site(**changes: Any) -> Site:
    return replace(Site(capability=CAPABILITY, asset=read_asset(asset())), **changes)


@pytest.mark.parametrize(
    ("message", "facts", "answer"),
    [
        (order(), {}, ("Acked", "Accepted")),
        (order(watts=8000), {}, ("Acked", "Accepted")),
        (order(watts=8001), {}, ("Rejected", "LimitExceeded")),
        (order(watts=-8001), {}, ("Rejected", "LimitExceeded")),
        (order(mode="GenerationLimit", watts=0), {}, ("Acked", "Accepted")),
        (order(mode="GenerationLimit", watts=-1), {}, ("Rejected", "LimitExceeded")),
        (order(mode="Magic"), {}, ("Rejected", "ModeNotSupported")),
        (order(duration_seconds=0), {}, ("Rejected", "InvalidSchedule")),
        (order(duration_seconds=3601), {}, ("Rejected", "InvalidSchedule")),
        (order(start_us=T0 - 50 * S), {}, ("Acked", "Accepted")),
        (order(start_us=T0 - 50 * S - 1), {}, ("Expired", "StartDeadlineExceeded")),
        (order(start_us=T0 + 10**14), {}, ("Acked", "Accepted")),
        (order(asset_uid="other"), {}, ("Rejected", "AssetNotFound")),
        (order(), {"asset": None}, ("Rejected", "AssetNotFound")),
        (order(), {"clock_offset_milliseconds": -5001}, ("Rejected", "ClockSkewTooLarge")),
        (order(), {"clock_offset_milliseconds": 5000}, ("Acked", "Accepted")),
        (order(), {"local": LocalLimits(max_injection_watts=4999)},
         ("Rejected", "LocalLimitExceeded")),
        (order(watts=-5000), {"local": LocalLimits(max_injection_watts=0)}, ("Acked", "Accepted")),
        (order(cancelled=True), {}, ("Cancelled", "CancelledBeforeStart")),
        (order(known_phase="Acked"), {}, ("Failed", "LedgerLost")),
        (order(known_phase="Active", cancelled=True), {}, ("Failed", "LedgerLost")),
        (order(other_ledger_id="old"), {}, ("Failed", "LedgerLost")),
        (order(other_ledger_id="old", cancelled=True), {}, ("Failed", "LedgerLost")),
        (order(known_phase="Sent"), {}, ("Acked", "Accepted")),
        (order(verify="Required"), {}, ("Acked", "Accepted")),
        (order(verify="Required", duration_seconds=5), {}, ("Rejected", "CannotVerify")),
        (order(verify="Required"), {"capability": replace(CAPABILITY, can_measure=False)},
         ("Rejected", "CannotVerify")),
        (order(), {"capability": replace(CAPABILITY, modes=frozenset())},
         ("Rejected", "ModeNotSupported")),
        (order(), {"capability": replace(CAPABILITY, max_injection_watts=4000)},
         ("Rejected", "LimitExceeded")),
        (order(), {"asset": read_asset(asset(operating_state="OutOfService"))},
         ("Rejected", "AssetOutOfService")),
        (order(), {"asset": read_asset(asset(operating_state="Quarantined"))},
         ("Rejected", "AssetQuarantined")),
    ],
)  # fmt: skip
def test_the_answer_to_an_order(
    message: Any, facts: dict[str, Any], answer: tuple[str, str]
) -> None:
    execution = judge(read_order(message), site(**facts), now_us=T0, draw=0.0)

    assert (execution.phase, execution.reason) == answer


@pytest.mark.parametrize(
    ("message", "facts", "value", "limit"),
    [
        (order(watts=-8001), {}, "8001 W", "8000 W"),
        (order(mode="LoadLimit", watts=-1), {}, "-1 W", "no negative"),
        (order(duration_seconds=3601), {}, "3601 s", "3600 s"),
        (order(start_us=T0 - 52 * S), {}, "2.0 s", "50 s"),
        (order(start_us=T0 - 103 * S, start_deadline_seconds=200), {}, "3.0 s after the end",
         "100 s after"),
        (order(), {"clock_offset_milliseconds": -5001}, "-5001 ms", "5000 ms"),
        (order(), {"local": LocalLimits(max_injection_watts=4999)}, "5000 W", "4999 W"),
        (order(), {"capability": replace(CAPABILITY, max_injection_watts=4000)},
         "5000 W", "4000 W"),
        (order(verify="Required", duration_seconds=5), {}, "5 s", "5 s that"),
    ],
)  # fmt: skip
def test_a_refusal_has_value_limit_and_unit(
    message: Any, facts: dict[str, Any], value: str, limit: str
) -> None:
    execution = judge(read_order(message), site(**facts), now_us=T0, draw=0.0)

    assert value in execution.message
    assert limit in execution.message


def test_clamping_takes_the_asset_limit_and_says_so() -> None:
    clamping = site(asset=read_asset(asset(on_exceed="Clamp")))

    execution = judge(read_order(order(watts=9500)), clamping, now_us=T0, draw=0.0)

    assert (execution.target_watts, execution.clamped_by) == (8000, "AssetLimits")


def test_the_randomised_start_is_drawn_within_its_bounds_and_kept() -> None:
    message = read_order(order(randomize_start_seconds=10))

    starts = {
        judge(message, site(), now_us=T0, draw=draw).planned.start_us  # type: ignore[union-attr]
        for draw in (0.0, 0.5, 0.999999)
    }

    assert starts == {T0 + 60 * S, T0 + 65 * S, T0 + 70 * S}


async def test_an_acceptance_is_on_the_disk_before_it_is_reported(agent: Agent) -> None:
    seen: list[bool] = []
    agent.outlet.report = lambda _: seen.append(bool(agent.ledger.unsettled()))

    await agent.give(order())

    assert seen == [True]


async def test_an_order_that_is_new_costs_one_look_at_the_disk(agent: Agent) -> None:
    run, calls = agent.controller.journal._run, []

    async def count(call: Callable[..., Any], /, *arguments: Any) -> Any:
        calls.append(call)
        return await run(call, *arguments)

    agent.controller.journal._run = count
    await agent.give(order())

    assert len(agent.reports) == 1
    assert len(calls) == 1


async def test_a_report_leaves_before_the_agent_goes_on(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    leaves = asyncio.Event()

    async def write() -> None:
        await leaves.wait()
        happened.append("written")

    writer = asyncio.create_task(write())
    await asyncio.sleep(0)
    agent.outlet.report = lambda _: leaves.set()
    monkeypatch.setattr(
        agent.controller.journal, "_note_steps", lambda *_: happened.append("logged")
    )

    await agent.give(order())
    await writer

    assert happened == ["written", "logged"]


async def test_a_repeated_order_changes_nothing(agent: Agent) -> None:
    await agent.give(order(), order(), order())

    assert len(agent.reports) == 1


@pytest.mark.parametrize("fallback", [9000, -9000])
async def test_local_limits_bound_the_fallback_too(tmp_path: Path, fallback: int) -> None:
    local = LocalLimits(max_injection_watts=3000, max_absorption_watts=2000)
    agent = Agent(tmp_path, local=local)

    await agent.start(asset(fallback_active_power_watts=fallback))

    assert agent.device.held.active_power_watts == (3000 if fallback > 0 else -2000)
    agent.ledger.close()
