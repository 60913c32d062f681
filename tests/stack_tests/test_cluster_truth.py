"""The checker of the cluster tests finds each kind of untruth, and none where all is true."""

from dataclasses import replace
from typing import Any

import pytest
from tests.cluster.truth import Evidence, untruths
from tests.kills.judging import DEFAULT, Stay

from derops.schedules import SECOND_US

START = 1_000_000 * SECOND_US
SECONDS = 20


def test_what_is_true_is_not_complained_of() -> None:
    assert untruths(_evidence()) == []


def test_an_agent_that_was_away_leaves_a_hole_that_is_excused() -> None:
    silence = Stay(from_us=START + 6 * SECOND_US, until_us=START + 12 * SECOND_US)
    away = _evidence(execution={"activeSeconds": SECONDS, "interruptions": 1})
    heard = [
        each for each in away.samples if not silence.from_us <= each["at_us"] < silence.until_us
    ]

    assert untruths(replace(away, samples=heard, lives_lost=1, silences=[silence])) == []
    assert untruths(replace(away, samples=heard, lives_lost=1)) == [
        "10 samples in 16 s in which the device held 3000 W"
    ]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        pytest.param({"lives_lost": 1}, "interruptions is 0", id="interruption not told"),
        pytest.param({"history": None}, "no line", id="not in the database"),
        pytest.param(
            {"history": {"phase": "Failed", "reason": "RevertFailed"}}, "Failed", id="other history"
        ),
        pytest.param({"samples": []}, "0 samples in 16 s", id="no telemetry"),
        pytest.param(
            {"samples": [{"at_us": START + n * SECOND_US, "watts": 0.0} for n in range(SECONDS)]},
            "not near 3000 W",
            id="telemetry of another power",
        ),
        pytest.param({"account": []}, "activeSeconds", id="device never told"),
    ],
)
def test_each_untruth_is_found(change: dict[str, Any], words: str) -> None:
    evidence = _evidence()
    if change.get("history"):
        change["history"] = {**(evidence.history or {}), **change["history"]}

    assert words in "\n".join(untruths(replace(evidence, **change)))


def test_a_window_that_was_cut_short_is_found() -> None:
    short = _evidence(execution={"activeSeconds": 12, "interruptions": 0}, held_seconds=12)

    assert "activeSeconds is 12 of 20.0" in "\n".join(untruths(short))


def _evidence(execution: dict[str, Any] | None = None, held_seconds: int = SECONDS) -> Evidence:
    execution = execution or {"activeSeconds": SECONDS, "interruptions": 0}
    conditions = [{"type": "Applied", "status": "True"}]
    history = [{"phase": "Active"}, {"phase": "Complete"}]
    return Evidence(
        dispatch={
            "metadata": {"name": "through"},
            "spec": {
                "setpoint": {"mode": "ActivePower", "activePowerWatts": 3000},
                "durationSeconds": SECONDS,
            },
            "status": {
                "phase": "Complete",
                "reason": "WindowEnded",
                "conditions": conditions,
                "execution": execution,
                "history": history,
                "timeline": {
                    "appliedAt": "2026-11-30T10:00:00.5Z",
                    "plannedEnd": "2026-11-30T10:00:20.5Z",
                },
            },
        },
        account=[
            {**DEFAULT, "at_us": START, "active_power_watts": 3000},
            {**DEFAULT, "at_us": START + held_seconds * SECOND_US},
        ],
        samples=[{"at_us": START + n * SECOND_US, "watts": 2990.0} for n in range(held_seconds)],
        history={
            "phase": "Complete",
            "reason": "WindowEnded",
            "active_seconds": execution["activeSeconds"],
            "interruptions": execution["interruptions"],
        },
    )
