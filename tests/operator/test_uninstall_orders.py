"""Which Dispatch stands in the way of an uninstallation, and what is said of it."""

from typing import Any

import pytest

from derops.schedules import SECOND_US
from derops_operator.resources.instants import format_second, parse_instant
from derops_operator.resources.objects import FINALIZER
from derops_operator.uninstall.orders import (
    Obstacle,
    describe,
    is_to_cancel,
    read_order,
    release_patch,
    standing,
)

NOW_US = parse_instant("2026-12-01T12:00:00Z")
SPEC = {
    "assetRef": {"name": "battery"},
    "setpoint": {"mode": "ActivePower", "activePowerWatts": 5000},
    "startTime": "2026-12-01T11:00:00Z",
    "durationSeconds": 7200,
}


def manifest(*finalizers: str, spec: Any = SPEC, **status: Any) -> dict[str, Any]:
    metadata = {"namespace": "pilot", "name": "peak", "uid": "u1", "resourceVersion": "7"}
    return {
        "metadata": metadata | {"finalizers": list(finalizers)},
        "spec": spec,
        "status": status,
    }


def ended(phase: str, reverted: str, *, seconds_ago: int = 60) -> dict[str, Any]:
    return manifest(
        phase=phase,
        completionTime=format_second(NOW_US - seconds_ago * SECOND_US),
        conditions=[{"type": "Reverted", "status": reverted}],
    )


WITHDRAWN = {**SPEC, "desiredState": "Cancelled"}


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (manifest(), Obstacle.OPEN),
        (manifest(spec=WITHDRAWN), Obstacle.OVER),
        (manifest(FINALIZER, spec=WITHDRAWN), Obstacle.OPEN),
        (manifest(spec=WITHDRAWN, phase="Submitted"), Obstacle.OVER),
        (manifest(spec=WITHDRAWN, phase="Submitted", timeline={"submittedAt": "x"}), Obstacle.OPEN),
        (manifest(spec=WITHDRAWN, phase="Active"), Obstacle.OPEN),
        (manifest(phase="Acked"), Obstacle.OPEN),
        (ended("Cancelled", "True"), Obstacle.OVER),
        (ended("Failed", "False"), Obstacle.OPEN),
        (ended("Failed", "False", seconds_ago=10_000_000), Obstacle.OPEN),
        (ended("Failed", "Unknown"), Obstacle.OPEN),
        (ended("Failed", "Unknown", seconds_ago=2 * 86400), Obstacle.UNTOLD),
        (manifest(phase="Failed"), Obstacle.OPEN),
    ],
)
def test_what_a_device_may_hold_stands_in_the_way(seen: dict[str, Any], expected: Obstacle) -> None:
    assert standing(read_order(seen), NOW_US) is expected


def test_what_no_gateway_was_given_stands_in_nobodys_way_once_no_operator_runs() -> None:
    assert standing(read_order(manifest()), NOW_US, stopped=True) is Obstacle.OVER
    assert standing(read_order(manifest(FINALIZER)), NOW_US, stopped=True) is Obstacle.OPEN


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        (manifest(), True),
        (manifest(phase="Acked"), True),
        (manifest(spec=WITHDRAWN), False),
        (ended("Complete", "True"), False),
    ],
)
def test_what_has_not_ended_is_cancelled_once(seen: dict[str, Any], expected: bool) -> None:
    assert is_to_cancel(read_order(seen)) is expected


@pytest.mark.parametrize(
    "status",
    [
        None,
        [],
        "x",
        {"phase": ["Active"]},
        {"conditions": {"type": "Reverted"}, "phase": "Failed"},
        {"conditions": ["Reverted", None, {"type": "Reverted", "status": 1}], "phase": "Failed"},
        {"timeline": "never", "execution": [], "phase": "Acked", "completionTime": {}},
    ],
)
@pytest.mark.parametrize("spec", [None, "x", {"setpoint": []}, {"durationSeconds": "1e400"}])
def test_an_object_without_sense_stands_in_the_way_if_it_bears_our_finalizer(
    status: Any, spec: Any
) -> None:
    strange = manifest(FINALIZER, spec=spec) | {"status": status}

    order = read_order(strange)

    assert standing(order, NOW_US) is Obstacle.OPEN
    assert describe(order).startswith("pilot/peak: ")


def test_of_an_active_one_it_says_what_the_device_may_hold_and_until_when() -> None:
    active = manifest(
        FINALIZER,
        phase="Active",
        message="the device took the setpoint",
        timeline={"plannedEnd": "2026-12-01T13:00:05.000Z"},
        execution={"applied": {"mode": "ActivePower", "watts": 4830}},
        reversion={"guard": "DeviceTimer"},
    )

    words = describe(read_order(active), connected=False)

    assert words.startswith("pilot/peak: Active; the agent of battery is not connected; ")
    assert "may hold ActivePower 4830 W until 2026-12-01T13:00:05.000Z" in words
    assert "the device has a timer" in words


def test_of_an_accepted_one_it_says_when_it_starts_by_itself() -> None:
    words = describe(read_order(manifest(FINALIZER, phase="Acked")), connected=True)

    assert "starts it by itself" in words
    assert "ActivePower 5000 W from 2026-12-01T11:00:00Z until 2026-12-01T13:00:00Z" in words
    assert "not connected" not in words


def test_what_was_not_reverted_has_no_known_end() -> None:
    assert "there is no other end" in describe(read_order(ended("Failed", "False")))
    assert "nobody knows" in describe(read_order(ended("Failed", "Unknown")))


def test_what_it_says_is_one_line_that_no_terminal_obeys() -> None:
    hostile = manifest(phase="Active", message="ok\n\x1b[2Jforged: all is reverted\r" + "x" * 5000)

    words = describe(read_order(hostile))

    assert words.isprintable()
    assert len(words) < 1000


def test_only_our_finalizers_are_taken_off_and_each_is_tested_first() -> None:
    patch = release_patch(
        manifest(FINALIZER, "foregroundDeletion", "derops.io/older", "example.com/derops.io")
    )

    assert patch == [
        {"op": "test", "path": "/metadata/uid", "value": "u1"},
        {"op": "test", "path": "/metadata/finalizers/2", "value": "derops.io/older"},
        {"op": "remove", "path": "/metadata/finalizers/2"},
        {"op": "test", "path": "/metadata/finalizers/0", "value": FINALIZER},
        {"op": "remove", "path": "/metadata/finalizers/0"},
    ]
    assert release_patch(manifest("foregroundDeletion")) == []
