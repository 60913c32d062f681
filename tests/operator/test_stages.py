"""How long dispatches take, by the timelines that were stored."""

from typing import Any

import pytest
from prometheus_client import REGISTRY
from tests.operator.making import asset, at, dispatch
from tests.operator.test_status_writer import Rig, SlowKube

from derops_operator.reconciling.stages import Stage, measure_overrun, measure_stages
from derops_operator.resources.instants import format_instant
from derops_operator.resources.objects import Kind


def status(**seconds: float) -> dict[str, Any]:
    return {"timeline": {name: format_instant(at(each)) for name, each in seconds.items()}}


WHOLE = status(
    submittedAt=0, sentAt=0.25, ackedAt=0.5, plannedStart=2, plannedEnd=102, appliedAt=2.5,
    verifiedAt=12.5, endedAt=102, revertedAt=102.25,
)  # fmt: skip


def test_each_stage_has_its_seconds() -> None:
    assert measure_stages({}, WHOLE) == {
        Stage.SENT: 0.25,
        Stage.ACKED: 0.25,
        Stage.APPLIED: 0.5,
        Stage.VERIFIED: 10.0,
    }


def test_a_stage_that_was_stored_before_is_not_measured_again() -> None:
    stored = status(submittedAt=0, sentAt=0.25)

    assert set(measure_stages(stored, WHOLE)) == {Stage.ACKED, Stage.APPLIED, Stage.VERIFIED}
    assert measure_stages(WHOLE, WHOLE) == {}


def test_a_late_acceptance_counts_from_itself() -> None:
    late = status(ackedAt=30, plannedStart=2, appliedAt=31)

    assert measure_stages({}, late) == {Stage.APPLIED: 1.0}


def test_the_agents_clock_is_corrected_where_two_clocks_meet() -> None:
    behind = status(sentAt=10, ackedAt=4)
    behind["timeline"]["clockOffsetMilliseconds"] = 7000

    assert measure_stages({}, behind) == {Stage.ACKED: 1.0}


def test_no_stage_takes_less_than_nothing() -> None:
    assert measure_stages({}, status(sentAt=10, ackedAt=4)) == {Stage.ACKED: 0.0}


@pytest.mark.parametrize(
    ("before", "after", "seconds"),
    [
        pytest.param({}, WHOLE, 0.25, id="a little after the end"),
        pytest.param(WHOLE, WHOLE, None, id="stored already"),
        pytest.param({}, status(plannedEnd=100, revertedAt=160), 60.0, id="late"),
        pytest.param({}, status(plannedEnd=100, revertedAt=50), 0.0, id="cancelled"),
        pytest.param({}, status(plannedEnd=100), None, id="not reverted"),
    ],
)
def test_an_overrun_counts_from_the_promised_end(
    before: dict[str, Any], after: dict[str, Any], seconds: float | None
) -> None:
    assert measure_overrun(before, after) == seconds


def value(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def test_what_was_stored_is_counted_once_and_not_again_after_a_restart() -> None:
    name = "derops_operator_dispatch_stage_seconds_count"

    def seen() -> list[float]:
        return [
            *(value(name, stage=stage, type="Battery") for stage in Stage),
            value("derops_operator_late_reverts_total"),
            value("derops_operator_overrun_seconds_total"),
        ]

    late = {"phase": "Complete", **WHOLE, "completionTime": "2027-01-15T08:03:00Z"}
    late["timeline"] = {**WHOLE["timeline"], "revertedAt": format_instant(at(162))}
    rig, before = Rig(SlowKube(), dispatch(submitted=True)), seen()
    rig.cache.put(Kind.ASSET, asset())

    await rig.write(late)
    assert [new - old for new, old in zip(seen(), before, strict=True)] == [1, 1, 1, 1, 1, 60]

    restarted, before = Rig(SlowKube(), dispatch(submitted=True, status=late)), seen()
    restarted.cache.put(Kind.ASSET, asset())
    await restarted.write({**late, "message": "said again"})
    assert seen() == before
