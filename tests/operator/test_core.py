"""The core on an API server in memory: what it does first, and what it tells the history."""

from collections.abc import Mapping
from typing import Any

import pytest
from tests.lifecycle.cluster import Cluster
from tests.lifecycle.operating import Operator

from derops.schedules import SECOND_US
from derops.wire.v1 import control_pb2
from derops_operator.resources.dispatches import CREATOR_ANNOTATION
from derops_operator.resources.instants import format_second
from derops_operator.resources.objects import Kind

T0 = 1_800_000_000 * SECOND_US
DAY_SECONDS = 24 * 3600
SETPOINT = {"mode": "ActivePower", "activePowerWatts": 1000}


class Rig:
    """One operator and what it tells the history, in a time that a test sets."""

    def __init__(self) -> None:
        self.now_us = T0
        self.told: list[control_pb2.HeadendTransition] = []
        self.cluster = Cluster(lambda: self.now_us, lambda before, status: None)
        self.operator = self.start()

    def start(self) -> Operator:
        """Start the operator, in the place of one that runs."""
        self.operator = Operator(self.cluster, 1, lambda: self.now_us, self.told.append)
        return self.operator

    def apply(
        self, annotations: Mapping[str, str] | None = None, name: str = "peak", **spec: Any
    ) -> None:
        """Create a dispatch that begins in a minute."""
        start = format_second(self.now_us + 60 * SECOND_US)
        wanted = {"startTime": start, "durationSeconds": 30, "setpoint": SETPOINT, **spec}
        self.cluster.create(name, annotations=annotations, **wanted)

    async def wait(self, seconds: float) -> None:
        """Let time pass in steps that are shorter than any pause of the operator."""
        end_us = self.now_us + round(seconds * SECOND_US)
        while self.now_us < end_us:
            self.now_us = min(end_us, self.now_us + SECOND_US // 25)
            while await self.operator.run():
                pass

    @property
    def phases(self) -> list[str]:
        return [each.transition.phase for each in self.told]

    @property
    def stored(self) -> list[str]:
        return [each["phase"] for each in self.cluster.dispatches["peak"].history]


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_nothing_is_given_or_shown_of_a_dispatch_before_it_is_held(rig: Rig) -> None:
    await rig.wait(0.5)
    rig.operator.way.refuses = Kind.DISPATCH
    rig.apply()
    await rig.wait(1)
    assert rig.stored == []
    assert rig.operator.desired.asset_uid_of("uid-peak") is None

    rig.operator.way.refuses = None
    await rig.wait(1)
    assert rig.stored == ["Submitted"]
    assert rig.operator.desired.asset_uid_of("uid-peak") == "uid-battery"


async def test_nothing_is_shown_of_an_asset_before_it_is_held(rig: Rig) -> None:
    await rig.wait(0.5)
    rig.operator.way.refuses = Kind.ASSET
    rig.apply()
    await rig.wait(1)
    rig.cluster.change_asset(telemetry={"intervalSeconds": 2})
    await rig.wait(1)
    assert rig.cluster.asset.status["observedGeneration"] == 1

    rig.operator.way.refuses = None
    await rig.wait(1)
    assert rig.cluster.asset.meta.holds_finalizer
    assert rig.cluster.asset.status["observedGeneration"] == 2


async def test_what_is_gone_is_taken_from_the_gateways(rig: Rig) -> None:
    rig.apply()
    await rig.wait(0.5)
    assert rig.operator.desired.asset_uid_of("uid-peak") == "uid-battery"

    rig.cluster.force_away(Kind.DISPATCH, "peak")
    rig.cluster.force_away(Kind.ASSET, "battery")
    await rig.wait(0.5)
    assert rig.operator.desired.asset_uid_of("uid-peak") is None
    assert not rig.operator.desired.has_asset("uid-battery")


async def test_who_ordered_it_goes_to_the_history_with_its_submission(rig: Rig) -> None:
    rig.apply({CREATOR_ANNOTATION: "alice"})

    await rig.wait(0.5)
    assert [(each.transition.phase, each.created_by) for each in rig.told] == [
        ("Submitted", "alice")
    ]


async def test_the_history_is_told_what_is_stored_and_once(rig: Rig) -> None:
    rig.apply()
    rig.operator.way.holds = True
    await rig.wait(0.5)
    assert rig.told == []

    rig.operator.way.holds = False
    await rig.wait(0.5)
    rig.cluster.change("peak", desiredState="Cancelled")
    await rig.wait(0.5)
    assert rig.phases == rig.stored == ["Submitted"]


async def test_an_end_that_is_refused_is_not_told(rig: Rig) -> None:
    rig.cluster.change_asset(operatingState="OutOfService")
    await rig.wait(0.5)
    rig.apply()
    rig.operator.way.holds = True
    await rig.wait(0.5)
    rig.cluster.change("peak", desiredState="Cancelled")
    rig.operator.way.holds = False
    await rig.wait(0.5)

    assert rig.phases == rig.stored == ["Cancelled"]


async def test_an_end_whose_answer_was_lost_is_told_when_it_is_heard_of(rig: Rig) -> None:
    rig.cluster.change_asset(operatingState="OutOfService")
    await rig.wait(0.5)
    rig.apply()
    rig.operator.way.loses_answers = True
    await rig.wait(0.05)
    assert rig.stored == ["Rejected"]
    rig.operator.way.loses_answers = False

    await rig.wait(0.5)
    assert rig.phases == ["Rejected"]


@pytest.mark.parametrize(
    ("start", "days", "told"),
    [
        pytest.param("2027-01-15T08:02:00Z", 0.9, True, id="within a day of the last end"),
        pytest.param("2027-01-15T08:02:00Z", 1.1, False, id="a day before the last end"),
        pytest.param("2026-12-01T00:00:00Z", 0.9, True, id="its window was long over"),
        pytest.param("2027-01-18T08:02:00Z", 1.1, True, id="its window is to come"),
    ],
)
async def test_what_ended_within_a_day_of_the_last_end_is_told_at_each_start(
    rig: Rig, start: str, days: float, told: bool
) -> None:
    rig.cluster.change_asset(operatingState="OutOfService")
    rig.apply(startTime=start)
    await rig.wait(0.5)
    assert rig.phases == ["Rejected"]
    rig.now_us += round(days * DAY_SECONDS * SECOND_US)
    rig.apply(name="last")
    await rig.wait(0.5)
    assert rig.phases == ["Rejected", "Rejected"]
    rig.told.clear()

    rig.start()
    assert [each.dispatch_uid for each in rig.told].count("uid-peak") == told
    assert [each.dispatch_uid for each in rig.told].count("uid-last") == 1


async def test_what_was_stored_and_not_told_is_told_however_long_the_operator_was_down(
    rig: Rig,
) -> None:
    rig.cluster.change_asset(operatingState="OutOfService")
    rig.apply()
    rig.operator.way.loses_answers = True
    await rig.wait(0.05)
    await rig.operator.kill()
    assert rig.stored == ["Rejected"]
    rig.told.clear()

    rig.now_us += 9 * DAY_SECONDS * SECOND_US
    rig.start()
    assert rig.phases == ["Rejected"]
