"""What is wrong with a device, from what replicas say to conditions and Events."""

import random
from dataclasses import replace
from typing import Any, cast

import pytest
from tests.operator.making import asset, at
from tests.operator.test_assets import after, conditions, decide
from tests.operator.test_events import bodies, queued
from tests.operator.test_kstatus import computed, of
from tests.operator.test_replicas import fleet

from derops.wire.v1 import agent_pb2, control_pb2, dispatch_pb2
from derops_operator.cluster.client import Kube
from derops_operator.cluster.events import EventWriter
from derops_operator.gateways.devices import DEVICE_EVERY_US, DEVICES_PER_SECOND
from derops_operator.gateways.replicas import Fleet
from derops_operator.gateways.views import Connectivity, SessionView
from derops_operator.reconciling.device_conditions import DEVICE_CONDITIONS
from derops_operator.resources.assets import Asset
from derops_operator.resources.instants import format_second

UID = "uid-battery"
WELL = agent_pb2.DeviceFacts()
SILENT = agent_pb2.DeviceFacts(silent_since_us=at(3), silence="no answer within 2 s")
BAD = agent_pb2.DeviceFacts(
    bad_points=[
        agent_pb2.BadPoint(
            name="stateOfChargePercent", raw="0x0065", problem="101 % is no share", since_us=at(4)
        )
    ]
)
UNHELD = agent_pb2.DeviceFacts(fallback_problem="5500 W is no whole step of 690 W")
KEPT = agent_pb2.DeviceFacts(
    fallback_problem="released it, the device says 4140 W", fallback_not_taken=True
)
OFFLINE = SessionView(link=Connectivity.DISCONNECTED, since_us=at(9))


def says(facts: agent_pb2.DeviceFacts | None, **others: Any) -> SessionView:
    return SessionView(link=Connectivity.CONNECTED, since_us=at(0), device=facts, **others)


def condition(subject: Asset, kind: str) -> dict[str, Any]:
    (found,) = [each for each in subject.status["conditions"] if each["type"] == kind]
    return dict(found)


def looked(subject: Asset, session: SessionView, seconds: float = 10) -> Asset:
    return after(subject, decide(subject, session=session, seconds=seconds))


@pytest.mark.parametrize(
    ("facts", "kind", "reason", "words"),
    [
        (
            BAD,
            "TelemetryDegraded",
            "BadPoints",
            "stateOfChargePercent: 101 % is no share (raw value 0x0065, since "
            f"{format_second(at(4))})",
        ),
        (
            SILENT,
            "DeviceSilent",
            "NoAnswer",
            f"the device has given no sample since {format_second(at(3))}: no answer within 2 s",
        ),
        (UNHELD, "FallbackNotHeld", "NotRepresentable", "5500 W is no whole step of 690 W"),
        (KEPT, "FallbackNotHeld", "NotTaken", "released it, the device says 4140 W"),
    ],
)
def test_what_is_wrong_is_a_condition_that_clears_by_itself(
    facts: agent_pb2.DeviceFacts, kind: str, reason: str, words: str
) -> None:
    subject = looked(asset(), says(facts))
    told = condition(subject, kind)
    assert (told["status"], told["reason"], told["message"]) == ("True", reason, words)
    assert [each for each in DEVICE_CONDITIONS if each in conditions_of(subject)] == [kind]

    subject = looked(subject, says(WELL), seconds=20)
    assert condition(subject, kind)["status"] == "False"
    assert condition(subject, kind)["lastTransitionTime"] == format_second(at(20))


def conditions_of(subject: Asset) -> dict[str, str]:
    return {each["type"]: each["status"] for each in subject.status["conditions"]}


@pytest.mark.parametrize("facts", [None, WELL])
def test_a_device_that_is_well_or_of_which_nobody_speaks_has_no_condition(
    facts: agent_pb2.DeviceFacts | None,
) -> None:
    assert not set(DEVICE_CONDITIONS) & set(conditions_of(looked(asset(), says(facts))))


@pytest.mark.parametrize(
    ("session", "reason"),
    [
        (OFFLINE, "AgentOffline"),
        (says(None), "NotTold"),
        (SessionView(link=Connectivity.UNKNOWN), "ReplicaLost"),
    ],
)
def test_what_nobody_says_any_more_is_unknown_with_what_was_said_last(
    session: SessionView, reason: str
) -> None:
    subject = looked(asset(), says(SILENT))
    for seconds in (20, 30):
        subject = looked(subject, session, seconds)
        told = condition(subject, "DeviceSilent")
        assert (told["status"], told["reason"]) == ("Unknown", reason)
        assert told["message"].endswith(
            "before that it was True: the device has given no sample since "
            f"{format_second(at(3))}: no answer within 2 s"
        )
        assert told["message"].count("before that") == 1
        assert told["lastTransitionTime"] == format_second(at(20))


def test_a_restarted_operator_keeps_what_was_known_until_it_has_asked() -> None:
    subject = looked(asset(), says(SILENT))

    again = looked(subject, SessionView(link=Connectivity.UNHEARD), seconds=20)

    assert condition(again, "DeviceSilent") == condition(subject, "DeviceSilent")


def test_nothing_of_it_is_a_matter_of_health() -> None:
    well = looked(asset(), says(WELL))
    everything = agent_pb2.DeviceFacts()
    for each in (BAD, SILENT, UNHELD):
        everything.MergeFrom(each)
    ill = looked(well, says(everything))
    gone = looked(ill, OFFLINE)

    kinds = ("Ready", "Reconciling", "Stalled")
    assert len({tuple(conditions_of(each)[kind] for kind in kinds) for each in (well, ill)}) == 1
    statuses = [each.status for each in (well, ill, gone)]
    assert computed(*[of("DERAsset", dict(each)) for each in statuses]) == ["Current"] * 3


def test_of_many_bad_points_as_many_are_named_as_there_is_room_for() -> None:
    points = [
        agent_pb2.BadPoint(name=f"point{n}", raw="0" * 64, problem="p" * 200, since_us=at(1))
        for n in range(8)
    ]
    facts = agent_pb2.DeviceFacts(bad_points=points, more_bad_points=5)

    said = condition(looked(asset(), says(facts)), "TelemetryDegraded")["message"]

    assert len(said) <= 1024
    assert said.startswith("point0: p")
    assert said.endswith("; and 10 more")
    assert said.count("since") == 3


# How often it is shown


def state(facts: agent_pb2.DeviceFacts, seconds: float) -> control_pb2.DeviceState:
    return control_pb2.DeviceState(asset_uid=UID, facts=facts, received_us=at(seconds))


def opened(subject: Fleet, seconds: float, name: str = "one") -> None:
    told = control_pb2.Session(asset_uid=UID, connected=True, epoch=1, since_us=at(seconds))
    subject.note_session(name, told, dispatch_pb2.IdentityLedger(), at(seconds))


def shown(subject: Fleet, seconds: float) -> agent_pb2.DeviceFacts | None:
    return subject.session(UID, at(seconds)).device


def test_the_first_word_is_shown_at_once_and_a_newer_one_after_thirty_seconds() -> None:
    subject = fleet("one")
    opened(subject, 10)
    assert shown(subject, 11) is None
    subject.note_device("one", state(BAD, 12))
    assert shown(subject, 12) == BAD

    subject.note_device("one", state(SILENT, 13))
    subject.note_device("one", state(WELL, 14))
    assert shown(subject, 41) == BAD
    again_us = subject.session(UID, at(41)).device_again_us
    assert again_us == at(12) + DEVICE_EVERY_US
    assert shown(subject, 42) == WELL
    assert subject.session(UID, at(43)).device_again_us is None


def test_what_begins_to_be_wrong_is_shown_at_once_however_often_it_was_looked_before() -> None:
    subject = fleet("one")
    opened(subject, 10)
    for second in range(11, 51):
        subject.note_device("one", state(WELL, second))
        assert shown(subject, second) == WELL
    subject.note_device("one", state(BAD, 51))
    assert shown(subject, 51) == BAD
    for second in range(52, 102):
        subject.note_device("one", state(BAD, second))
        assert shown(subject, second) == BAD
    subject.note_device("one", state(WELL, 102))
    assert shown(subject, 102) == WELL


def test_the_operator_looks_again_when_there_is_something_newer_to_show() -> None:
    decision = decide(session=says(BAD, device_again_us=at(40)), seconds=15)

    assert decision.again_us is not None
    assert at(40) <= decision.again_us <= at(41)


def test_a_point_that_flaps_for_an_hour_costs_a_status_in_thirty_seconds() -> None:
    subject, seen = fleet("one"), asset()
    opened(subject, 0)
    writes, draw = 0, random.Random(1)
    for second in range(1, 3600):
        subject.note_device("one", state(draw.choice((BAD, WELL)), second))
        later = looked(seen, subject.session(UID, at(second)), seconds=second)
        writes += later.status != seen.status
        seen = later

    assert 30 < writes <= 3600 * 1_000_000 / DEVICE_EVERY_US + 1


def test_what_changes_after_a_while_is_shown_at_once_however_often_it_was_looked_at() -> None:
    subject = fleet("one")
    opened(subject, 0)
    for second in range(1, 100, 7):
        subject.note_device("one", state(WELL, second))
        assert shown(subject, second) == WELL
    subject.note_device("one", state(SILENT, 100))

    assert shown(subject, 100) == SILENT


def test_a_clock_that_is_set_back_keeps_nothing_from_being_shown() -> None:
    subject = fleet("one")
    opened(subject, 0)
    subject.note_device("one", state(BAD, 4000))
    assert shown(subject, 4000) == BAD
    subject.note_device("one", state(WELL, 4001))

    assert shown(subject, 400) == WELL


def test_what_flaps_everywhere_leaves_the_api_server_to_others_and_is_shown_in_turns() -> None:
    subject, uids, draw = fleet("one"), [f"uid-{n}" for n in range(1_000)], random.Random(1)
    seen: dict[str, tuple[agent_pb2.DeviceFacts | None, int]] = {}
    changes, longest_seconds, until = 0, 0, 400
    for uid in uids:
        told = control_pb2.Session(asset_uid=uid, connected=True, epoch=1, since_us=at(0))
        subject.note_session("one", told, dispatch_pb2.IdentityLedger(), at(0))
    for second in range(1, until, 3):
        for uid in uids:
            facts = draw.choice((BAD, WELL, SILENT))
            news = control_pb2.DeviceState(asset_uid=uid, facts=facts, received_us=at(second))
            subject.note_device("one", news)
            device = subject.session(uid, at(second)).device
            before, since = seen.setdefault(uid, (device, second))
            if before != device:
                changes += 1
                longest_seconds = max(longest_seconds, second - since)
                seen[uid] = device, second

    assert changes <= until * DEVICES_PER_SECOND
    assert min(since for _, since in seen.values()) >= until - 3 * len(uids) / DEVICES_PER_SECOND
    assert longest_seconds <= 3 * len(uids) / DEVICES_PER_SECOND


def test_what_an_earlier_stream_said_is_not_shown() -> None:
    subject = fleet("one")
    opened(subject, 10)
    subject.note_device("one", state(SILENT, 12))
    assert shown(subject, 12) == SILENT

    opened(subject, 20)
    assert shown(subject, 21) is None
    subject.note_device("one", state(SILENT, 22))
    assert shown(subject, 22) == SILENT
    opened(subject, 23)
    subject.note_device("one", state(WELL, 24))
    assert shown(subject, 24) is None, "and what it says now comes in its time"
    assert shown(subject, 42) == WELL


def test_of_two_replicas_the_one_that_has_the_stream_tells() -> None:
    subject = fleet("one", "two")
    opened(subject, 10, "one")
    subject.note_device("one", state(SILENT, 11))
    closed = control_pb2.Session(asset_uid=UID, epoch=1, since_us=at(12))
    subject.note_session("one", closed, dispatch_pb2.IdentityLedger(), at(12))
    opened(subject, 12, "two")

    assert shown(subject, 12) is None
    subject.note_device("two", state(BAD, 13))
    assert shown(subject, 13) == BAD


def test_a_lost_or_returning_replica_has_told_nothing() -> None:
    subject = fleet("one")
    opened(subject, 10)
    subject.note_device("one", state(SILENT, 11))
    subject.lose_replica("one", at(12))
    assert shown(subject, 43) is None

    subject.add_replica("one", at(-100), 1, at(50))
    opened(subject, 10)
    assert shown(subject, 51) is None


def test_what_is_gone_is_forgotten() -> None:
    subject = fleet("one")
    opened(subject, 10)
    subject.note_device("one", state(SILENT, 11))
    assert shown(subject, 11) == SILENT
    assert UID in subject.known_uids()
    subject.forget(UID)

    assert UID not in subject.known_uids()


# Events


def test_one_event_when_it_begins_and_one_when_it_is_over() -> None:
    writer = EventWriter(cast("Kube", None))
    subject = asset()
    seen = (
        says(WELL), says(SILENT), says(SILENT), OFFLINE, says(None), says(SILENT), OFFLINE,
        says(WELL), OFFLINE, says(WELL),
    )  # fmt: skip
    for number, session in enumerate(seen):
        later = looked(subject, session, seconds=number)
        writer.post_device(subject, later)
        subject = later

    begun, ended = bodies(writer)
    assert (begun["type"], begun["reason"]) == ("Warning", "NoAnswer")
    assert "has given no sample since" in begun["note"]
    assert (ended["type"], ended["reason"]) == ("Normal", "Answers")


def test_a_point_that_flaps_is_two_events_and_then_few(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = [0.0]
    monkeypatch.setattr("derops_operator.cluster.events.time.monotonic", lambda: seconds[0])
    writer = EventWriter(cast("Kube", None))
    subject = asset()
    for number in range(120):  # an hour, as often as it is shown
        seconds[0] = number * 30.0
        later = looked(subject, says(WELL if number % 2 else BAD), seconds=number * 30)
        writer.post_device(subject, later)
        other = replace(subject.meta, uid="uid-other")
        if number == 119:
            writer.post_device(replace(subject, meta=other), replace(later, meta=other))
        subject = later

    found = queued(writer)
    assert found[:2] == [("Warning", "BadPoints"), ("Normal", "AllPointsGood")]
    assert 10 <= len(found) <= 15, "and the other asset has its own"
    assert conditions(decide(subject))["Ready"][0] == "True"
