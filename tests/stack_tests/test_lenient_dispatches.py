"""Dispatches of tests on the stack: the machine may be slow, unless lateness is the subject."""

from typing import Any

import pytest
from tests.e2e.acting import lenient


def test_a_short_window_may_start_a_minute_late_and_stays_as_long() -> None:
    late = {"startDeadlineSeconds": 60, "latePolicy": "KeepDuration"}

    assert lenient({"durationSeconds": 2}) == {"durationSeconds": 2, **late}


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param({"durationSeconds": 300}, id="a long window"),
        pytest.param({"durationSeconds": 4, "startDeadlineSeconds": 2}, id="its own deadline"),
        pytest.param({"durationSeconds": 4, "latePolicy": "KeepEnd"}, id="its own policy"),
    ],
)
def test_what_a_test_says_of_lateness_or_leaves_to_the_defaults_stays(spec: dict[str, Any]) -> None:
    assert lenient(spec) == spec
