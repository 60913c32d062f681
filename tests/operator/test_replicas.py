"""What replicas say, folded: nothing may depend on who speaks first."""

import pytest
from tests.operator.making import acked, active, at, ended

from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_operator.gateways.replicas import Fleet
from derops_operator.gateways.views import Connectivity


def fleet(*names: str, expected: int | None = None) -> Fleet:
    subject = Fleet(at(0))
    subject.expected = len(names) if expected is None else expected
    for name in names:
        subject.add_replica(name, at(-100), 1, at(1))
        subject.note_accepted(name, 1, at(1))
    return subject


def session(connected: bool = True, epoch: int = 1, serial_number: str = "") -> control_pb2.Session:
    return control_pb2.Session(
        asset_uid="a", connected=connected, epoch=epoch, serial_number=serial_number
    )


def note(subject: Fleet, name: str, told: control_pb2.Session) -> control_pb2.EpochSeen | None:
    return subject.note_session(name, told, dispatch_pb2.IdentityLedger(), at(2))


def delivery(generation: int = 1, written_us: int = 0) -> control_pb2.Delivery:
    return control_pb2.Delivery(dispatch_uid="d", generation=generation, written_us=written_us)


def told(report: dispatch_pb2.DispatchReport) -> control_pb2.AgentReport:
    return control_pb2.AgentReport(report=report, received_us=at(9))


def test_the_connected_stream_of_the_highest_epoch_is_the_one() -> None:
    subject = fleet("one", "two")
    note(subject, "one", session(epoch=1, serial_number="old"))
    note(subject, "two", session(epoch=2, serial_number="new"))

    assert subject.session("a", at(2)).serial_number == "new"

    note(subject, "two", session(connected=False, epoch=3))
    assert subject.session("a", at(2)).serial_number == "old"


def test_a_lost_replicas_sessions_count_for_thirty_seconds() -> None:
    subject = fleet("one")
    note(subject, "one", session())
    subject.lose_replica("one", at(10))

    assert subject.session("a", at(39)).link is Connectivity.CONNECTED
    assert subject.session("a", at(41)).link is Connectivity.UNKNOWN


def test_silence_means_no_stream_only_after_everybody_could_speak() -> None:
    subject = fleet("one")
    assert subject.session("a", at(2)).link is Connectivity.UNHEARD
    assert subject.session("a", at(7)).link is Connectivity.DISCONNECTED

    nobody = fleet()
    assert nobody.session("a", at(29)).link is Connectivity.UNHEARD
    assert nobody.session("a", at(31)).link is Connectivity.UNKNOWN


@pytest.mark.parametrize("is_lost", [True, False])
def test_what_was_known_stays_while_the_only_replica_begins_a_new_stream(is_lost: bool) -> None:
    subject = fleet("one")
    note(subject, "one", session())
    if is_lost:
        subject.lose_replica("one", at(100))

    subject.add_replica("one", at(-100), 5, at(101))

    assert subject.session("a", at(102)).link is Connectivity.UNHEARD
    assert subject.session("a", at(132)).link is Connectivity.UNKNOWN


def test_a_returning_replica_starts_with_a_clean_slate() -> None:
    subject = fleet("one")
    note(subject, "one", session())
    subject.note_delivery("one", delivery(written_us=at(1)))
    subject.lose_replica("one", at(10))

    subject.add_replica("one", at(11), 5, at(11))

    assert subject.session("a", at(12)).link is Connectivity.UNHEARD
    (holding,) = subject.dispatch("d", 1, 1).holdings
    assert holding.generation is None


def test_only_a_higher_epoch_is_news() -> None:
    subject = fleet("one", "two")

    seen = note(subject, "one", session(epoch=5))
    assert seen is not None
    assert (seen.asset_uid, seen.epoch) == ("a", 5)
    assert note(subject, "two", session(epoch=4)) is None
    assert note(subject, "two", session(epoch=5)) is None
    assert [each.epoch for each in subject.all_seen()] == [5]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_latest_report_of_a_ledger_stands(order: tuple[int, ...]) -> None:
    subject = fleet("one")
    reports = [acked(sequence=1), active(sequence=2), ended(sequence=3)]
    for index in order:
        subject.note_report(told(reports[index]))

    report = subject.dispatch("uid-peak", 1, 1).report
    assert report is not None
    assert report.phase == "Complete"


def test_a_repeated_report_is_no_news() -> None:
    subject = fleet("one")

    assert subject.note_report(told(acked(sequence=4)))
    assert not subject.note_report(told(acked(sequence=4)))
    assert not subject.note_report(told(acked(sequence=3)))


@pytest.mark.parametrize("swapped", [False, True])
def test_of_two_ledgers_that_both_ended_it_the_one_that_applied_it_is_believed(
    swapped: bool,
) -> None:
    subject = fleet("one")
    lost = ended("Failed", "LedgerLost", applied_us=0, ledger_id="zzz")
    reports = [told(ended()), told(lost)]
    for message in reversed(reports) if swapped else reports:
        subject.note_report(message)

    view = subject.dispatch("uid-peak", 1, 1)
    assert view.report is not None
    assert view.report.phase == "Complete"
    assert view.disk_lost


def test_of_many_ledgers_the_furthest_report_and_the_newest_are_kept() -> None:
    subject = fleet("one")
    subject.note_report(told(ended(ledger_id="genuine")))

    for number in range(100):
        message = told(acked(ledger_id=f"ledger-{number}"))
        message.received_us += number
        subject.note_report(message)

    kept = subject._reports["uid-peak"]
    assert set(kept) == {"genuine", *(f"ledger-{number}" for number in range(93, 100))}
    report = subject.dispatch("uid-peak", 1, 1).report
    assert report is not None
    assert report.phase == "Complete"


def test_a_lost_replica_matters_only_where_it_may_hold_the_dispatch() -> None:
    subject = fleet("one", "two", expected=1)
    subject.note_sent("two", 7)
    subject.lose_replica("two", at(5))

    assert {each.replica for each in subject.dispatch("d", 7, 7).holdings} == {"one", "two"}
    assert {each.replica for each in subject.dispatch("d", 8, 8).holdings} == {"one"}


def test_a_view_is_complete_only_with_all_configured_replicas() -> None:
    assert fleet("one").dispatch("d", 1, 1).complete
    assert not fleet("one", expected=2).dispatch("d", 1, 1).complete
    unresolved = fleet("one")
    unresolved.expected = None
    assert not unresolved.dispatch("d", 1, 1).complete


def test_what_is_forgotten_leaves_nothing() -> None:
    subject = fleet("one")
    note(subject, "one", session())
    subject.note_delivery("one", delivery())
    subject.note_report(told(acked()))
    for uid in subject.known_uids():
        subject.forget(uid)

    assert subject.known_uids() == set()
