"""Dispatches through whatever may befall them: each ends once, true, and leaves nothing behind.

``make histories`` runs 10,000 of these histories. Before them one in which nothing goes wrong ends
well; after them is counted what they did, and too little fails.
"""

import asyncio
import inspect
import json
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from tests.lifecycle.site import BENIGN, FAULTS
from tests.lifecycle.world import GATEWAYS, World

from derops.lifecycle import Phase
from derops_operator.resources.objects import Kind

EXAMPLES = int(os.environ.get("DEROPS_EXAMPLES") or 120)
STEPS = 40

NUMBERS = st.integers(0, 11)
GATEWAY = st.integers(0, GATEWAYS - 1)
MODES = st.sampled_from(
    [
        *["ActivePower"] * 3,
        "GenerationLimit",
        "LoadLimit",
        "CeaseToEnergize",
    ]
)
_FIELDS = {
    "ActivePower": "activePowerWatts",
    "GenerationLimit": "maxGenerationWatts",
    "LoadLimit": "maxLoadWatts",
}
_RAM = Path("/dev/shm")
_COUNTED = {
    "break_device": "device broken",
    "fill_disk_soon": "disk full within a turn",
    "cut_power": "agent without power",
    "cut_stream": "links cut",
    "cut_control": "links cut",
}


async def test_what_nothing_befalls_completes(tmp_path: Path) -> None:
    """Histories in which no dispatch reached its device would prove nothing."""
    world = World(tmp_path)
    await world.begin()
    setpoint = {"mode": "ActivePower", "activePowerWatts": 1000}
    world.apply("peak", 2, setpoint=setpoint, durationSeconds=10)
    await world.advance(20)

    status = world.cluster.dispatches["peak"].status
    assert (status["phase"], status["reason"]) == ("Complete", "WindowEnded")
    assert world.at_rest()
    await world.end()


DONE: Counter[str] = Counter()
"""What all histories of this process did together."""

LEAST_OF_EACH_HISTORY = {
    "steps": 13.0,
    "dispatches": 1.0,
    "reports": 0.9,
    "on the device": 0.5,
    "completed": 0.25,
    "withdrawn": 0.3,
    "device broken": 0.35,
    "agent without power": 0.6,
    "disk full within a turn": 0.3,
    "links cut": 1.0,
}
"""On average; a third of what was counted as this was written."""


class InPlaceLoop(asyncio.SelectorEventLoop):
    """Runs blocking calls where they are made: faster, and in the same order each time."""

    def run_in_executor(  # type: ignore[override]
        self, executor: object, call: Callable[..., Any], *arguments: Any
    ) -> asyncio.Future[Any]:
        future = self.create_future()
        try:
            future.set_result(call(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future


class Lifecycle(RuleBasedStateMachine):
    """Each rule is something that happens; after it, what is not held back arrives."""

    def __init__(self) -> None:
        super().__init__()
        ram = str(_RAM) if os.access(_RAM, os.W_OK) else None
        self._folder = tempfile.TemporaryDirectory(dir=ram)
        self._loop = InPlaceLoop()
        self._names: list[str] = []

    def _do(self, act: Callable[..., Any], *facts: Any, **more: Any) -> None:
        """Have something happen, and whatever follows from it at once."""

        async def run() -> None:
            DONE["steps"] += 1
            if (what := _COUNTED.get(getattr(act, "__name__", ""))) and facts != ("none",):
                DONE[what] += 1
            answer = act(*facts, **more)
            if inspect.isawaitable(answer):
                await answer
            if act != self.world.end:
                await self.world.flow()

        self._loop.run_until_complete(run())

    def _name(self, number: int) -> str | None:
        return self._names[number % len(self._names)] if self._names else None

    # Below the distance of two orders, so that the account shows whose value the device holds.
    @initialize(timer=st.sampled_from([None, 20]), step=st.sampled_from([1, 140]))
    def begin(self, timer: int | None, step: int) -> None:
        device = {} if timer is None else {"reversionMaxSeconds": timer}
        self.world = World(Path(self._folder.name), stepWatts=step, **device)
        self._do(self.world.begin)

    # People

    @rule(
        mode=MODES,
        start=st.integers(-5, 30),
        duration=st.integers(1, 40),
        primacy=st.sampled_from([50, 100, 100]),
        late=st.sampled_from(["KeepEnd", "KeepDuration"]),
        verify=st.sampled_from(["Report", "Report", "Required"]),
        spread=st.sampled_from([0, 0, 10]),
        deadline=st.integers(1, 30),
        patience=st.sampled_from([10, 60, 300]),
        live=st.sampled_from([None, None, 0, 20]),
    )
    def apply(
        self,
        mode: str,
        start: int,
        duration: int,
        primacy: int,
        late: str,
        verify: str,
        spread: int,
        deadline: int,
        patience: int,
        live: int | None,
    ) -> None:
        # Further apart than the 1 % of its rating by which a device's registers may round.
        watts = 1000 + 150 * len(self._names)
        name = f"d{len(self._names)}"
        self._names.append(name)
        self._do(
            self.world.apply,
            name,
            start,
            setpoint={"mode": mode} | ({_FIELDS[mode]: watts} if mode in _FIELDS else {}),
            durationSeconds=duration,
            startDeadlineSeconds=deadline,
            randomizeStartSeconds=spread,
            reportDeadlineSeconds=patience,
            latePolicy=late,
            primacy=primacy,
            verify=verify,
            ttlSecondsAfterFinished=live,
        )

    @rule(
        mode=MODES,
        start=st.integers(0, 2),
        duration=st.integers(8, 40),
        primacy=st.sampled_from([50, 100, 100]),
        late=st.sampled_from(["KeepEnd", "KeepDuration"]),
        wait=st.integers(0, 8),
    )
    def apply_soon(
        self, mode: str, start: int, duration: int, primacy: int, late: str, wait: int
    ) -> None:
        self.apply(mode, start, duration, primacy, late, "Report", 0, 30, 300, None)
        self._do(self.world.advance, wait)

    @rule(mode=MODES, kind=st.sampled_from([Kind.ASSET, Kind.DISPATCH]), wait=st.integers(1, 8))
    def apply_unheld(self, mode: str, kind: Kind, wait: int) -> None:
        self.refuse_finalizers(kind)
        self.apply_soon(mode, 0, 30, 100, "KeepEnd", wait)
        self.refuse_finalizers(None)

    @rule(
        seconds=st.integers(1, 6),
    )
    def mend_and_wait(self, seconds: int) -> None:
        self.world.site.break_device("none")
        self.world.mend_links()
        self._do(self.world.start_what_is_down)
        self._do(self.world.advance, seconds)

    @rule(number=NUMBERS)
    def cancel(self, number: int) -> None:
        if (name := self._name(number)) is not None:
            self._do(self.world.cancel, name)

    @rule(number=NUMBERS)
    def delete(self, number: int) -> None:
        if (name := self._name(number)) is not None:
            self._do(self.world.delete, name)

    @rule(state=st.sampled_from(["InService", "InService", "OutOfService"]))
    def set_operating_state(self, state: str) -> None:
        self._do(self.world.change_asset, operatingState=state)

    @rule(
        loss=st.booleans(),
        restart=st.booleans(),
        pause=st.sampled_from([0, 5]),
        most=st.sampled_from([10_000, 10_000, 1100]),
    )
    def change_policy(self, loss: bool, restart: bool, pause: int, most: int) -> None:
        fallback = {"activePowerWatts": 0, "onRestart": "Revert" if restart else "Resume"}
        if loss:
            fallback |= {"onCommsLoss": "Revert", "failsafeAfterSeconds": 15}
        limits = {
            "maxDispatchDurationSeconds": 3600,
            "minSecondsBetweenWrites": pause,
            "maxInjectionWatts": most,
            "maxAbsorptionWatts": most,
        }
        self._do(self.world.change_asset, fallback=fallback, limits=limits)

    # Time

    @rule(seconds=st.integers(1, 6))
    def wait(self, seconds: int) -> None:
        self._do(self.world.advance, seconds)

    @rule(seconds=st.integers(5, 40))
    def wait_long(self, seconds: int) -> None:
        self._do(self.world.advance, seconds)

    @rule(milliseconds=st.integers(1, 999))
    def wait_a_moment(self, milliseconds: int) -> None:
        self._do(self.world.advance, milliseconds / 1000)

    @rule(seconds=st.integers(-60, 60), confirmed=st.booleans())
    def step_clock(self, seconds: int, confirmed: bool) -> None:
        self.world.site.clock.ntp = confirmed
        self._do(self.world.step_clock, seconds)

    # Programs

    @rule(at_once=st.booleans(), after=st.integers(0, 4))
    def kill_operator(self, at_once: bool, after: int) -> None:
        if at_once:
            self._do(self.world.kill_operator)
        elif self.world.operator is not None:
            self.world.operator.fuse.left = after

    @rule(holds=st.booleans())
    def hold_api_server(self, holds: bool) -> None:
        self._do(self.world.hold_api_server, holds)

    @rule(loses=st.booleans())
    def lose_answers(self, loses: bool) -> None:
        self._do(self.world.lose_answers, loses)

    @rule(kind=st.sampled_from([None, Kind.ASSET, Kind.DISPATCH]))
    def refuse_finalizers(self, kind: Kind | None) -> None:
        self._do(self.world.refuse_finalizers, kind)

    @rule()
    def begin_era(self) -> None:
        self._do(self.world.begin_era)

    @rule(number=GATEWAY, lose_disk=st.sampled_from([False, False, False, True]))
    def kill_gateway(self, number: int, lose_disk: bool) -> None:
        self._do(self.world.kill_gateway, number, lose_disk=lose_disk)

    @rule()
    def start_what_is_down(self) -> None:
        self._do(self.world.start_what_is_down)

    @rule(after=st.integers(0, 8))
    def cut_power_soon(self, after: int) -> None:
        self.world.site.fuse.left = after

    @rule(seconds=st.sampled_from([0, 1, 5, 20, 70]), reboot=st.booleans())
    def restart_agent(self, seconds: int, reboot: bool) -> None:
        self._do(self.world.cut_power)
        self._do(self.world.advance, seconds)
        if reboot:
            self.world.site.reboot()
        self._do(self.world.start_agent)

    @rule(full=st.booleans())
    def fill_disk(self, full: bool) -> None:
        self._do(self.world.site.fill_disk, full)

    @rule(after=st.integers(0, 6), refused=st.sampled_from([None, 1, 1, 2, 3]))
    def fill_disk_soon(self, after: int, refused: int | None) -> None:
        self._do(self.world.site.fill_disk_soon, after, refused)

    @precondition(lambda self: self.world.site.ledgers == 0)
    @rule()
    def lose_disk(self) -> None:
        self._do(self.world.cut_power, lose_disk=True)
        self._do(self.world.start_agent)

    # Links

    @rule()
    def mend_links(self) -> None:
        self._do(self.world.mend_links)

    @rule(number=GATEWAY, stays=st.booleans())
    def cut_control(self, number: int, stays: bool) -> None:
        self.world.ways.control[number].cut = stays
        self._do(self.world.cut_control, number)

    @rule(noticed=st.booleans(), closed=st.sampled_from([[], [], [0], [1], [0, 1]]))
    def cut_stream(self, noticed: bool, closed: list[int]) -> None:
        for number, way in enumerate(self.world.ways.agent):
            way.cut = number in closed
        self._do(self.world.cut_stream, noticed=noticed)

    @rule(number=GATEWAY, agent=st.booleans(), held=st.sampled_from(["", "up", "down", "both"]))
    def hold_link(self, number: int, agent: bool, held: str) -> None:
        way = (self.world.ways.agent if agent else self.world.ways.control)[number]
        way.holds_down, way.holds_up = held in {"down", "both"}, held in {"up", "both"}
        self._do(self.world.flow)

    @rule(number=GATEWAY, stalls=st.booleans())
    def stall_writer(self, number: int, stalls: bool) -> None:
        self.world.ways.agent[number].stalls = stalls
        self._do(self.world.flow)

    @rule(
        queue=st.sampled_from(["reports", "orders", "told"]),
        act=st.sampled_from(["drop", "repeat", "overtake"]),
        at=st.integers(0, 3),
        number=GATEWAY,
    )
    def disturb(self, queue: str, act: str, at: int, number: int) -> None:
        self._do(self.world.disturb, queue, act, at, number)

    # The device

    @rule(fault=st.sampled_from([*sorted(FAULTS), "none", "none", "none"]))
    def break_device(self, fault: str) -> None:
        self._do(self.world.site.break_device, fault)

    @rule()
    def drop_setpoints(self) -> None:
        self.world.checker.doubt(5)
        self._do(self.world.site.drop_setpoints)

    def _count(self) -> None:
        known = self.world.checker.known.values()
        DONE["histories"] += 1
        DONE["dispatches"] += len(known)
        DONE["reports"] += sum(len(each.reports) for each in known)
        DONE["on the device"] += sum(each.stays > 0 for each in known)
        DONE["completed"] += sum(each.phase is Phase.COMPLETE for each in known)
        DONE["deleted when due"] += self.world.cluster.deleted_when_due
        DONE["withdrawn"] += sum(each.withdrawn for each in known)

    def teardown(self) -> None:
        try:
            if hasattr(self, "world"):
                self._do(self.world.heal)
                self.world.checker.conclude(self.world.cluster.dispatches)
                self._count()
                assert self.world.at_rest(), "something is left over"
        finally:
            if hasattr(self, "world"):
                self._do(self.world.end)
            self._loop.close()
            self._folder.cleanup()


class Healthy(Lifecycle):
    """The same with a device that takes each write at once, and says so at once or late.

    So nothing that happens is its fault, and nothing may be told as that.
    """

    @rule(fault=st.sampled_from(sorted(BENIGN)))
    def break_device(self, fault: str) -> None:
        self._do(self.world.site.break_device, fault)

    @rule()
    def drop_setpoints(self) -> None:
        """Nobody does."""

    @rule(
        mode=MODES,
        duration=st.integers(8, 40),
        deadline=st.integers(1, 10),
        wait=st.integers(5, 45),
        fault=st.sampled_from(sorted(BENIGN)),
    )
    def apply_undisturbed(
        self, mode: str, duration: int, deadline: int, wait: int, fault: str
    ) -> None:
        self.mend_and_wait(1)
        self._do(self.world.site.break_device, fault)
        self.apply(mode, 1, duration, 100, "KeepEnd", "Report", 0, deadline, 300, None)
        self._do(self.world.advance, wait)


TestLifecycle = Lifecycle.TestCase
TestHealthy = Healthy.TestCase
TestLifecycle.settings = TestHealthy.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


def test_the_histories_did_enough_to_say_something() -> None:
    """After all of them, so it stands last."""
    print(json.dumps(DONE))
    least = {what: number * EXAMPLES for what, number in LEAST_OF_EACH_HISTORY.items()}
    assert {what: DONE[what] for what, number in least.items() if DONE[what] < number} == {}
    assert DONE["histories"] >= EXAMPLES
