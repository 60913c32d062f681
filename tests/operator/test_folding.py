"""However reports arrive, they tell one story."""

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.making import Story, acked, active, at, ended, holding, report, view

from derops.lifecycle import Phase
from derops.wire.v1 import control_pb2, dispatch_pb2
from derops_operator.gateways.replicas import Fleet

ENDINGS = [
    ended(),
    ended("Failed", "DeviceOffline"),
    ended("Cancelled", "CancelledWhileActive"),
    ended("Superseded", "SupersededBy"),
    report("Rejected", "LocalLimitExceeded", sequence=9),
    report("Expired", "StartDeadlineExceeded", sequence=9),
]


def story_of(ending: dispatch_pb2.DispatchReport) -> list[dispatch_pb2.DispatchReport]:
    """Return what one ledger reports, in order."""
    if ending.phase in {"Rejected", "Expired"}:
        return [ending]
    return [acked(sequence=1), active(sequence=2), active(sequence=3, interruptions=1), ending]


@settings(max_examples=200)
@given(st.sampled_from(ENDINGS), st.data())
def test_any_order_and_repetition_of_reports_folds_to_the_same_ending(
    ending: dispatch_pb2.DispatchReport, data: st.DataObject
) -> None:
    told = story_of(ending)
    order = data.draw(st.permutations(told + data.draw(st.lists(st.sampled_from(told)))))
    fleet, story = Fleet(at(-60)), Story().look(0.1)
    fleet.expected = 1
    fleet.add_replica("gateway-0", at(-3600), 5, at(-50))
    fleet.note_accepted("gateway-0", 5, at(-49))
    fleet.note_delivery(
        "gateway-0",
        control_pb2.Delivery(
            dispatch_uid="uid-peak", generation=1, written_us=at(0.5), ledger_id="ledger"
        ),
    )
    phases = []

    for step, each in enumerate(order):
        fleet.note_report(control_pb2.AgentReport(report=each, received_us=at(1 + step)))
        story.look(1 + step, fleet.dispatch("uid-peak", 1, 5))
        phases.append(Phase(story.status["phase"]))

    assert story.ending == (ending.phase, ending.reason)
    assert [phase.rank for phase in phases] == sorted(phase.rank for phase in phases)
    assert len({phase for phase in phases if phase.terminal}) == 1
    assert "lateReport" not in story.status


@given(st.lists(st.sampled_from([*ENDINGS, acked(), active()]), min_size=1), st.data())
def test_once_ended_always_ended_the_same_way(
    reports: list[dispatch_pb2.DispatchReport], data: st.DataObject
) -> None:
    story, ending = Story().look(0.1), None

    for step, each in enumerate(reports):
        written = data.draw(st.sampled_from([0, at(0.5)]))
        story.look(1 + step * 40, view(holding(written_us=written), report=each))
        if ending is None and Phase(story.status["phase"]).terminal:
            ending = story.ending
        assert ending is None or story.ending == ending
