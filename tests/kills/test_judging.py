"""Each lie of a status is found in the device's account."""

from typing import Any

import pytest
from tests.kills.judging import DEFAULT, Stay, judge, stays

S = 1_000_000


def entry(at_seconds: float, watts: int | None = 0, **others: Any) -> dict[str, Any]:
    held = {**DEFAULT, "active_power_watts": watts, **others}
    return {"at_us": round(at_seconds * S), **held}


def dispatch(phase: str = "Complete", **execution: Any) -> dict[str, Any]:
    steps = ["Acked", "Active", phase]
    return {
        "metadata": {"name": "peak"},
        "spec": {"setpoint": {"mode": "ActivePower", "activePowerWatts": 1000}},
        "status": {
            "phase": phase,
            "reason": "Why",
            "conditions": [{"type": "Applied", "status": "True"}],
            "execution": {"activeSeconds": 5, **execution},
            "history": [{"phase": each} for each in steps],
        },
    }


HELD_FOR_FIVE = [entry(0), entry(10, 1000), entry(12, 1000, max_load_watts=3), entry(15)]


def kinds(told: dict[str, Any], account: list[dict[str, Any]]) -> list[str]:
    return [violation.kind for violation in judge(told, account)]


def test_a_status_that_the_device_proves_is_left_alone() -> None:
    assert stays(HELD_FOR_FIVE, "ActivePower", 1000) == [Stay(from_us=10 * S, until_us=15 * S)]
    assert not kinds(dispatch(), HELD_FOR_FIVE)


@pytest.mark.parametrize(
    ("told", "account", "found"),
    [
        (dispatch(activeSeconds=9), HELD_FOR_FIVE, "untrue"),
        (dispatch(), [entry(0)], "untrue"),
        (dispatch("Failed"), HELD_FOR_FIVE[:2], "without owner"),
        (dispatch(activeSeconds=7), [*HELD_FOR_FIVE, entry(20, 1000), entry(22)], "applied twice"),
    ],
)
def test_a_lie_is_found(told: dict[str, Any], account: list[dict[str, Any]], found: str) -> None:
    assert found in kinds(told, account)


def test_an_interruption_that_was_told_is_no_second_run() -> None:
    account = [*HELD_FOR_FIVE, entry(20, 1000), entry(22)]

    assert not kinds(dispatch(activeSeconds=7, interruptions=1), account)


def test_an_outcome_that_could_be_known_and_a_second_ending_are_found() -> None:
    unknown = dispatch("Failed")
    unknown["status"]["reason"] = "OutcomeUnknown"
    twice = dispatch()
    twice["status"]["history"].append({"phase": "Complete"})

    assert kinds(unknown, HELD_FOR_FIVE) == ["unknown"]
    assert kinds(twice, HELD_FOR_FIVE) == ["history"]
