"""Which Events a new status brings; that they arrive is tested with the whole product."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

from tests.operator.making import Story, active, asset, at, dispatch, ended, view
from tests.operator.test_assets import after, decide

from derops_operator.cluster.client import Kube
from derops_operator.cluster.events import EventWriter
from derops_operator.resources.assets import Asset
from derops_operator.resources.instants import format_second


def events(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    writer = EventWriter(cast("Kube", None))
    writer.post_transitions(dispatch(status=before), dispatch(status=after))
    return queued(writer)


def queued(writer: EventWriter) -> list[tuple[str, str]]:
    return [(body["type"], body["reason"]) for body in bodies(writer)]


def bodies(writer: EventWriter) -> list[dict[str, Any]]:
    return [writer._queue.get_nowait()[1] for _ in range(writer._queue.qsize())]


def test_a_device_that_falls_silent_is_one_event() -> None:
    story = Story().look(0.1).look(2, view(report=active()))
    running = story.status
    silent = active(sequence=2, verified="Unknown", verified_reason="DeviceOffline")
    story.look(20, view(report=silent))

    assert events(running, story.status) == [("Warning", "DeviceOffline")]

    told, later = story.status, {"active_milliseconds": 9000, "interruptions": 1, "sequence": 3}
    silent = active(verified="Unknown", verified_reason="DeviceOffline", **later)
    story.look(30, view(report=silent))
    assert events(told, story.status) == []

    told = story.status
    story.look(111, view(report=ended("Failed", "DeviceOffline", reverted_us=0)))
    assert [each for each in events(told, story.status) if each[0] == "Warning"] == [
        ("Warning", "DeviceOffline")
    ]

    told = story.status
    story.look(300, view(report=ended("Failed", "DeviceOffline", sequence=9, reverted_us=at(299))))
    assert events(told, story.status) == [("Normal", "Reverted")]


def test_what_lands_after_its_end_is_one_event_and_its_revert_another() -> None:
    given_up = ended("Failed", "DeviceOffline", applied_us=0, evidence="Unanswered")
    story = Story().look(0.1).look(113, view(report=given_up))
    told = story.status
    story.look(118, view(report=ended("Failed", "DeviceOffline", sequence=9, reverted_us=0)))
    assert events(told, story.status) == [("Warning", "AppliedLate")]

    told = story.status
    story.look(120, view(report=ended("Failed", "DeviceOffline", sequence=10)))
    assert events(told, story.status) == [("Normal", "Reverted")]


def test_a_revert_that_does_not_succeed_is_one_event() -> None:
    story = Story().look(0.1).look(2, view(report=active()))
    running = story.status
    stuck = active(ended_us=at(100), pending_error="it ended and is not reverted", sequence=3)
    story.look(103, view(report=stuck))
    assert events(running, story.status) == [("Warning", "RevertFailed")]

    told = story.status
    story.look(110, view(report=stuck))
    assert events(told, story.status) == []


def test_a_wait_for_the_asset_is_one_event_that_says_until_when() -> None:
    story = Story()
    story.asset = None
    story.look(1)
    waiting = story.status
    writer = EventWriter(cast("Kube", None))
    writer.post_transitions(dispatch(), dispatch(status=waiting))
    (event,) = bodies(writer)
    assert (event["type"], event["reason"]) == ("Normal", "AssetNotFound")
    assert "asset battery does not exist" in event["note"]
    assert f"until {format_second(at(60))}" in event["note"]

    story.look(5)
    assert events(waiting, story.status) == []

    told = story.status
    story.look(61)
    assert events(told, story.status) == [("Warning", "AssetNotFound")]


def events_of(subject: Asset, status: Mapping[str, Any]) -> list[tuple[str, str]]:
    writer = EventWriter(cast("Kube", None))
    writer.post_release(subject, replace(subject, status=status))
    return queued(writer)


def test_an_asset_taken_out_whose_revert_nobody_confirms_is_one_event() -> None:
    subject, flying = asset(operatingState="OutOfService"), dispatch(submitted=True)
    subject = after(subject, decide(subject, seconds=1, dispatches=[flying]))

    overdue = decide(subject, seconds=70, dispatches=[flying]).status
    assert events_of(subject, overdue) == [("Warning", "RevertUnknown")]

    subject = replace(subject, status=overdue)
    later = decide(subject, seconds=80, dispatches=[flying]).status
    assert events_of(subject, later) == []


def test_the_deletion_of_an_asset_is_told_by_its_finalizer_alone() -> None:
    subject, flying = asset(deleting=0, held=True), dispatch(submitted=True)
    subject = after(subject, decide(subject, seconds=1, dispatches=[flying]))

    assert events_of(subject, decide(subject, seconds=70, dispatches=[flying]).status) == []
