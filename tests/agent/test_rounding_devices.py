"""Devices that round as they said, whatever else befalls them; and others that do not."""

import asyncio
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil, floor, inf
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, event, given, settings
from hypothesis import strategies as st
from tests.agent.fakes import CAPABILITY, T0, Agent, S, asset, order
from tests.agent.rounding import FIELDS, RoundingDevice, rounded

from derops.wire.v1 import agent_pb2
from derops_agent.ports import Capability, Reading, Resolution

STEPS = ("1", "10", "50", "100", "123.45", "230", "690", "1500", "0.4", "33.3")
NEVER = {"ReadBackMismatch", "RevertFailed", "RevertedLate", "SetpointNotHeld"}
LATE = {("Failed", "RevertFailed"), ("Failed", "RevertedLate")}
EXAMPLES = int(os.environ.get("DEROPS_EXAMPLES") or 60)
SLOW_RAMPS = (20, 35, 50, 75, 100, 150)
"""In W/s: longer than a window from value to value, and less a second than a step of a register."""


@dataclass(frozen=True)
class Scene:
    mode: str
    step: Fraction
    most_watts: int | None
    fallback_watts: int | None
    watts: tuple[int, ...]
    """Of orders of 30 s, one after the other."""

    gap_seconds: int = 15
    ramp: int | None = None
    lag_seconds: float = 0.0
    timer_seconds: int | None = None
    """What the device's own timer can be set to at most."""

    troubles: tuple[tuple[int, str], ...] = ()
    """At which second what happens; empty = nothing."""

    @property
    def capability(self) -> Capability:
        most = inf if self.most_watts is None else self.most_watts
        resolution = Resolution(step_watts=float(self.step), least_watts=-most, most_watts=most)
        return replace(CAPABILITY, resolutions={self.mode: resolution})

    def starts(self) -> list[int]:
        return [10 + number * (30 + self.gap_seconds) for number in range(len(self.watts))]

    def held(self, watts: int) -> int:
        return rounded(watts, self.step, self.most_watts)

    def is_refused(self, watts: int) -> bool:
        held = self.held(watts)
        if watts and not held:
            return True
        allowed_watts = max(100.0, 0.05 * abs(watts), float(self.step))
        return self.mode == "ActivePower" and abs(watts - held) > allowed_watts

    @property
    def slow_seconds(self) -> int:
        """What the longest way may take at most, each step of which is shown late, in seconds."""
        steps = 16_000 // self.ramp if self.ramp else 0
        return round(steps * (1 + self.lag_seconds))

    async def play(self, folder: Path, **of_device: Any) -> Agent:
        agent = Agent(folder)
        device = RoundingDevice(
            capability=self.capability,
            clock=agent.clock,
            step=self.step,
            most_watts=self.most_watts,
            lag_seconds=self.lag_seconds,
            timer_seconds=self.timer_seconds,
            **of_device,
        )
        await agent.use(device)
        config: dict[str, Any] = {"fallback_active_power_watts": None}
        config[f"fallback_{FIELDS[self.mode]}"] = self.fallback_watts
        await agent.start(asset(**config, max_ramp_watts_per_second=self.ramp))
        verify = "Report" if self.troubles or self.ramp else "Required"
        await agent.give(
            *[
                order(
                    f"d{number}",
                    mode=self.mode,
                    watts=watts,
                    start_us=T0 + at * S,
                    duration_seconds=30,
                    verify=verify,
                )
                for number, (watts, at) in enumerate(zip(self.watts, self.starts(), strict=True))
            ]
        )
        least_seconds = self.starts()[-1] + 150
        for second in range(least_seconds + self.slow_seconds):
            if second >= least_seconds and agent.has_settled:
                break
            for at, trouble in self.troubles:
                if at == second:
                    await befall(agent, device, trouble)
            agent.clock.pass_seconds(1)
            values = {int(agent_pb2.ACTIVE_POWER_WATTS): float(device.measured_watts)}
            if not device.fail:
                agent.controller.take(Reading(at_us=agent.clock.wall_us, values=values))
            await agent.controller.turn()
        agent.ledger.close()
        return agent


async def befall(agent: Agent, device: RoundingDevice, trouble: str) -> None:
    match trouble:
        case "the device drops a write":
            device.dropped = 1
        case "the device restarts":
            device.restart()
        case "the device takes nothing more":
            device.dropped = 1000
        case "the device is out":
            device.fail = "unreachable"
        case "the device is back":
            device.fail = ""
        case "the agent restarts":
            await agent.restart(down_seconds=3)


def run(scene: Scene, **of_device: Any) -> Agent:
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(scene.play(Path(folder), **of_device))


@st.composite
def troubles(draw: st.DrawFn) -> tuple[tuple[int, str], ...]:
    found: list[tuple[int, str]] = []
    for name in draw(
        st.lists(
            st.sampled_from(
                ["the device drops a write", "the device restarts", "out", "the agent restarts"]
            ),
            max_size=2,
            unique=True,
        )
    ):
        at = draw(st.integers(2, 140))
        if name == "out":
            found += [
                (at, "the device is out"),
                (at + draw(st.integers(1, 6)), "the device is back"),
            ]
        else:
            found.append((at, name))
    return tuple(sorted(found))


@st.composite
def scenes(
    draw: st.DrawFn,
    *,
    disturbed: bool = True,
    modes: Sequence[str] = tuple(sorted(FIELDS)),
    ramps: Sequence[int | None] = (None, 300),
) -> Scene:
    mode = draw(st.sampled_from(modes))
    least = -8000 if mode == "ActivePower" else 0
    watts = st.integers(least, 8000)
    return Scene(
        mode=mode,
        step=Fraction(draw(st.sampled_from(STEPS))),
        most_watts=draw(st.sampled_from([None, None, 6553])),
        fallback_watts=draw(st.none() | watts),
        watts=tuple(draw(st.lists(watts, min_size=1, max_size=3))),
        gap_seconds=draw(st.sampled_from([0, 5, 15])),
        ramp=draw(st.sampled_from(ramps)) if mode == "ActivePower" else None,
        lag_seconds=draw(st.sampled_from([0.0, 0.0, 2.0, 4.0])),
        timer_seconds=draw(st.sampled_from([None, 20, 60])),
        troubles=draw(troubles()) if disturbed else (),
    )


@settings(max_examples=EXAMPLES, deadline=None)
@given(scene=scenes())
def test_no_healthy_device_is_told_that_it_did_not_do_what_it_did(scene: Scene) -> None:
    event(f"rounded: {any(scene.held(watts) != watts for watts in scene.watts)}")
    check(scene)


@settings(max_examples=EXAMPLES, deadline=None)
@given(scene=scenes(modes=["ActivePower"], ramps=SLOW_RAMPS))
def test_no_healthy_device_on_a_slow_ramp_is_told_that_it_did_not_do_what_it_did(
    scene: Scene,
) -> None:
    check(scene)


SLOW_RAMP = Scene(
    mode="ActivePower", step=Fraction(1), most_watts=None, fallback_watts=0,
    watts=(-323,), ramp=300, lag_seconds=2.0,
)  # fmt: skip


LONG_WAY_BACK = replace(SLOW_RAMP, watts=(0,), fallback_watts=2703)
NEXT_IS_NEAR = replace(SLOW_RAMP, watts=(5000, 5050), gap_seconds=0, ramp=None)


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(
            replace(SLOW_RAMP, troubles=((14, "the device restarts"),)),
            id="told with the step before as applied",
        ),
        pytest.param(
            replace(LONG_WAY_BACK, troubles=((56, "the device restarts"),)),
            id="told as not reverted",
        ),
        pytest.param(
            replace(
                SLOW_RAMP, watts=(-623,), lag_seconds=4.0,
                troubles=(
                    (15, "the device is out"),
                    (20, "the device is back"),
                    (23, "the device restarts"),
                ),
            ),
            id="silent before, told with the step before as applied",
        ),
    ],
)  # fmt: skip
def test_a_device_that_reads_back_late_and_restarts_on_a_ramp(scene: Scene) -> None:
    check(scene)


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(
            replace(LONG_WAY_BACK, troubles=((56, "the device drops a write"),)),
            id="a step on a long way back",
        ),
        pytest.param(
            replace(
                SLOW_RAMP, watts=(0,), fallback_watts=301, lag_seconds=0.0,
                troubles=((40, "the device drops a write"),),
            ),
            id="the last step to the fallback",
        ),
        pytest.param(
            replace(SLOW_RAMP, lag_seconds=0.0, troubles=((10, "the device drops a write"),)),
            id="the last step to a setpoint",
        ),
        pytest.param(
            replace(NEXT_IS_NEAR, troubles=((39, "the device drops a write"),)),
            id="a value that is near to the one before",
        ),
        pytest.param(
            replace(
                SLOW_RAMP, watts=(-1911, 284, -211), fallback_watts=284,
                troubles=((99, "the device drops a write"),),
            ),
            id="the first step away from a fallback that was a setpoint too",
        ),
        pytest.param(
            replace(
                SLOW_RAMP, watts=(5185, 5185), gap_seconds=5,
                troubles=((39, "the device drops a write"),),
            ),
            id="a start, whose predecessor has a long way back",
        ),
    ],
)  # fmt: skip
def test_a_device_that_drops_a_write_is_written_again_and_told_truly(scene: Scene) -> None:
    check(scene)


COARSE = replace(SLOW_RAMP, step=Fraction(1500), lag_seconds=0.0, ramp=20)


def test_a_window_that_ends_on_its_ramp_tells_what_the_device_had_come_to() -> None:
    agent = run(replace(SLOW_RAMP, watts=(8000,), ramp=20, lag_seconds=0.0))

    report = agent.report("d0")
    assert (report.phase, report.verified, report.applied_watts) == ("Complete", "Unknown", 600)
    assert report.rounding == "the ramp had come to 600 W of 8000 W at the end"


def test_a_window_that_ends_before_a_step_of_the_register_is_told_as_not_applied() -> None:
    agent = run(replace(COARSE, watts=(6000,)))

    report = agent.report("d0")
    assert agent.outcome("d0") == ("Failed", "StartDeadlineExceeded")
    assert (report.applied_us, report.evidence) == (0, "")
    assert "the ramp has come to 600 W, where the device does not show yet" in report.message


@pytest.mark.parametrize(
    "scene",
    [
        pytest.param(
            replace(COARSE, fallback_watts=None, watts=(8000, -7708), gap_seconds=5),
            id="its successor has no step to show for 20 s",
        ),
        pytest.param(
            replace(
                COARSE, step=Fraction(690), ramp=50, fallback_watts=-1430,
                watts=(7999, -1430, 7999), gap_seconds=0,
            ),
            id="its successor is over before it has a step to show",
        ),
        pytest.param(
            replace(
                COARSE, most_watts=6553, fallback_watts=-4490, watts=(5130, -1627, 5130),
                gap_seconds=0, lag_seconds=2.0,
            ),
            id="the way back passes the value of one that was not applied",
        ),
        pytest.param(
            replace(
                SLOW_RAMP, step=Fraction(10), fallback_watts=None, watts=(-231, -479, -675),
                gap_seconds=5,
            ),
            id="a later way passes the value of one that did not arrive",
        ),
        pytest.param(
            replace(
                SLOW_RAMP, step=Fraction(50), watts=(450, 500, 0), gap_seconds=0, ramp=20,
                troubles=((2, "the device drops a write"), (40, "the agent restarts")),
            ),
            id="a way that begins anew after a restart passes the value of one that did not arrive",
        ),
    ],
)  # fmt: skip
def test_what_a_slow_ramp_leaves_or_passes_is_told_truly(scene: Scene) -> None:
    check(scene)


def test_the_first_step_of_a_device_that_was_released_is_shown_however_coarse_it_is() -> None:
    scene = replace(COARSE, step=Fraction(100), most_watts=6553, fallback_watts=None, watts=(0,))
    agent = run(scene)

    assert agent.outcome("d0") == ("Complete", "WindowEnded")
    assert agent.report("d0").applied_watts == 6500


def test_a_device_that_loses_the_first_step_of_its_register_is_not_blamed() -> None:
    scene = replace(COARSE, ramp=70, watts=(6000,), troubles=((30, "the device drops a write"),))
    check(scene)

    assert run(scene).outcome("d0") == ("Failed", "StartDeadlineExceeded")


def test_a_device_that_rounds_to_what_it_held_before_is_written_once_more_and_told() -> None:
    agent = run(NEXT_IS_NEAR, distort=lambda watts, _: watts - watts % 100)

    report = agent.report("d1")
    assert (report.phase, report.applied_watts) == ("Complete", 5000)
    assert "says that it holds 5000 W" in report.rounding
    assert agent.powers == [0, 5000, 0]
    assert [each.active_power_watts for each in agent.device.writes].count(5000) == 3


@pytest.mark.parametrize("ramp", [50, 300])
def test_a_device_that_keeps_its_setpoint_is_told_however_small_the_steps_back(ramp: int) -> None:
    scene = replace(SLOW_RAMP, watts=(3000,), ramp=ramp, lag_seconds=0.0)
    agent = run(replace(scene, troubles=((39, "the device takes nothing more"),)))

    assert agent.outcome("d0") == ("Failed", "RevertFailed")


def check(scene: Scene) -> None:
    """Play a scene, and check what is told of its device."""
    agent = run(scene)
    assert isinstance(agent.device, RoundingDevice)

    for number, watts in enumerate(scene.watts):
        uid = f"d{number}"
        phase, reason = agent.outcome(uid)
        report = agent.report(uid)
        said = {(step.phase, step.reason) for step in report.transitions}
        if (phase, reason) in LATE and agent.device.most_lost > 1:
            continue  # it forgot two writes in a row, and was reverted late indeed
        assert not {reason for _, reason in said} & NEVER, report
        assert (reason == "NotRepresentable") == scene.is_refused(watts), report
        if scene.is_refused(watts):
            assert phase == "Rejected"
            continue
        start_us = T0 + scene.starts()[number] * S
        end_us = start_us + 30 * S
        first, *then = agent.device.powers_within(start_us, end_us)
        # What it holds for less than its lag before the end is not shown until then.
        shown = agent.device.powers_within(start_us, end_us - round(scene.lag_seconds * S))
        if scene.ramp and reason == "StartDeadlineExceeded":
            # A step of the ramp is less than one of the register: nothing of it was on the device.
            assert set(shown) <= {first, 0, None}, report
            assert set(then) <= {first, 0, None} or report.evidence == "Unanswered", report
            assert (phase, report.applied_us) == ("Failed", 0), report
            continue
        assert (phase, reason) == ("Complete", "WindowEnded"), report
        if scene.ramp and report.applied_watts != scene.held(watts):
            assert scene.held(watts) not in shown[-1:], report
            assert report.applied_watts in then, report
            assert f"had come to {report.applied_watts} W" in report.rounding
        else:
            assert report.applied_watts == scene.held(watts), report
            # Over a gap before the next window it stays, and the ramp to it goes on.
            stays_us = end_us + scene.gap_seconds * S
            held = agent.device.powers_within(start_us, stays_us)
            assert scene.mode != "ActivePower" or scene.held(watts) in held, report
            assert bool(report.rounding) == (scene.held(watts) != watts)
        if not scene.troubles:
            assert report.verified == "True" or scene.ramp
            assert report.interruptions == 0
    if any(trouble == "the device restarts" for _, trouble in scene.troubles):
        return  # what it lost of its fallback since is not looked at
    held = getattr(agent.device.held, FIELDS[scene.mode])
    rest = scene.fallback_watts
    assert held == (None if rest is None else scene.held(rest)), "it is not at its fallback"


WRONG: dict[str, Callable[[int, int], int]] = {
    "a step more": lambda watts, step: watts + step,
    "a step less": lambda watts, step: watts - step,
    "another sign": lambda watts, step: -watts,
    "ten times": lambda watts, step: watts * 10,
    "a tenth": lambda watts, step: floor(watts / 10),
}


@pytest.mark.parametrize("fault", WRONG)
@settings(max_examples=EXAMPLES // 5, deadline=None)
@given(scene=scenes(disturbed=False))
def test_no_device_that_does_something_else_is_told_that_it_was_fine(
    scene: Scene, fault: str
) -> None:
    scene = replace(scene, watts=scene.watts[:1], fallback_watts=None, ramp=None)
    (watts,) = scene.watts
    assume(not scene.is_refused(watts))
    other = WRONG[fault](scene.held(watts), ceil(scene.step))
    assume(abs(other - scene.held(watts)) >= scene.step)
    agent = run(scene, distort=WRONG[fault])

    report = agent.report("d0")
    if report.applied_us:
        # It may round by 1 % of its own, and is told with what it says; no limit grows by it.
        assert abs(other - scene.held(watts)) <= 100, report
        assert other * scene.held(watts) >= 0, report
        assert scene.mode == "ActivePower" or other <= scene.held(watts) + 1, report
        assert report.applied_watts == other, report
        assert f"says that it holds {other} W" in report.rounding
        return
    assert report.phase == "Failed", report
    assert not report.applied_us, report
    assert report.verified != "True"
