"""What is known of a device that answers in part, or not at all; and what it tells."""

from tests.agent.fakes import T0, S

from derops.devices import MAX_BAD_POINTS, MAX_DEVICE_BYTES, bounded
from derops.wire.v1 import agent_pb2
from derops_agent.clock import Moment
from derops_agent.execution import health
from derops_agent.execution.health import Health
from derops_agent.ports import BadPoint, Reading

CHARGE = BadPoint(
    name="stateOfChargePercent",
    raw="0x0065",
    problem="101 % is above 100 %",
    quantity=agent_pb2.STATE_OF_CHARGE_PERCENT,
)
VOLTAGE = BadPoint(name="voltageVolts", raw="0xffff", problem="65535 V is no voltage")


def at(seconds: float) -> Moment:
    return Moment(wall_us=T0 + round(seconds * S), monotonic_us=round(seconds * S))


def reading(*bad: BadPoint, **values: float) -> Reading:
    numbers = {int(agent_pb2.Quantity.Value(name)): value for name, value in values.items()}
    return Reading(at_us=T0, values=numbers, bad_points=bad)


def told(known: Health, seconds: float) -> agent_pb2.DeviceFacts:
    facts = health.write_facts(known, "", at(seconds))
    assert facts is not None
    return facts


def test_before_the_first_answer_nothing_is_told() -> None:
    assert health.write_facts(Health(), "", at(0)) is None
    assert health.write_facts(health.note_missed(Health(), "no answer", at(1)), "", at(30)) is None


def test_a_device_that_is_well_has_nothing_wrong() -> None:
    assert told(health.note_sample(Health(), reading(), at(1)), 2) == agent_pb2.DeviceFacts()


def test_a_bad_point_is_told_by_its_first_value_until_a_sample_has_it_good() -> None:
    known = health.note_sample(Health(), reading(), at(1))
    known = health.note_sample(known, reading(CHARGE), at(2))
    later = BadPoint(name=CHARGE.name, raw="0x0066", problem="102 %", quantity=CHARGE.quantity)
    known = health.note_sample(known, reading(VOLTAGE, later), at(3))

    first, second = told(known, 4).bad_points
    assert (first.name, first.raw, first.problem) == (CHARGE.name, "0x0065", CHARGE.problem)
    assert (first.since_us, first.samples) == (at(2).wall_us, 2)
    assert (second.name, second.since_us) == ("voltageVolts", at(3).wall_us)

    known = health.note_sample(known, reading(later), at(5))
    assert [each.name for each in told(known, 5).bad_points] == [CHARGE.name]
    assert told(health.note_sample(known, reading(), at(6)), 6).bad_points == []


def test_the_last_good_value_of_a_bad_point_is_kept_and_no_other() -> None:
    known = health.note_sample(
        Health(), reading(STATE_OF_CHARGE_PERCENT=40.0, FREQUENCY_HERTZ=50.0), at(1)
    )
    known = health.note_sample(known, reading(CHARGE), at(2))

    assert known.values == {agent_pb2.STATE_OF_CHARGE_PERCENT: 40.0}
    assert known.bad[CHARGE.name].last_good_us == at(1).monotonic_us
    again = health.note_sample(known, reading(STATE_OF_CHARGE_PERCENT=41.0), at(3))
    assert again.values == {agent_pb2.STATE_OF_CHARGE_PERCENT: 41.0}


def test_a_device_is_silent_after_two_samples_and_ten_seconds_without_an_answer() -> None:
    known = health.note_sample(Health(), reading(), at(0))
    known = health.note_missed(known, "no answer within 2 s", at(8))
    assert told(known, 20).silent_since_us == 0, "one sample may get lost"
    known = health.note_missed(known, "not asked, next try at 9:00", at(9))
    assert told(known, 17.9).silent_since_us == 0

    facts = told(known, 18)
    assert (facts.silent_since_us, facts.silence) == (at(8).wall_us, "no answer within 2 s")
    assert told(health.note_sample(known, reading(), at(19)), 19) == agent_pb2.DeviceFacts()


def test_a_device_that_never_answered_is_silent_since_it_was_first_asked() -> None:
    known = health.note_missed(
        health.note_missed(Health(), "no connection", at(3)), "no connection", at(4)
    )

    assert told(known, 13).silent_since_us == at(3).wall_us


def test_a_device_that_refuses_the_whole_sample_is_not_silent() -> None:
    known = health.note_sample(Health(), reading(CHARGE), at(0))
    for second in range(1, 30):
        known = health.note_refusal(known, "exception 2", at(second))

    facts = told(known, 30)
    assert facts.silent_since_us == 0
    assert [(each.name, each.problem) for each in facts.bad_points] == [
        (CHARGE.name, CHARGE.problem),
        ("sample", "exception 2"),
    ]
    assert facts.bad_points[1].since_us == at(1).wall_us
    assert told(health.note_sample(known, reading(), at(31)), 31).bad_points == []


def test_of_many_bad_points_those_that_are_bad_the_longest_are_named() -> None:
    many = [BadPoint(name=f"point{number}", raw="", problem="no") for number in range(20)]
    known = health.note_sample(Health(), reading(*many[5:]), at(1))
    known = health.note_sample(known, reading(*many), at(2))

    facts = told(known, 2)
    assert [each.name for each in facts.bad_points] == [f"point{n}" for n in range(5, 13)]
    assert facts.more_bad_points == 12


def test_what_a_driver_says_at_any_length_is_cut() -> None:
    point = agent_pb2.BadPoint(
        name="ü" * 1000, raw="\x1b[31m" + "ü" * 1000, problem="ü\n" * 1000, since_us=-1
    )
    facts = agent_pb2.DeviceFacts(
        bad_points=[point] * 100,
        more_bad_points=2**32 - 1,
        silent_since_us=2**63 - 1,
        silence="ü" * 10_000,
        fallback_problem="\0" * 10_000,
    )

    held = bounded(facts)

    assert len(held.bad_points) == MAX_BAD_POINTS
    assert held.ByteSize() <= MAX_DEVICE_BYTES
    assert held.bad_points[0].raw.startswith("?[31m")
    assert held.bad_points[0].since_us == 0
    texts = [held.silence, held.fallback_problem, held.bad_points[0].problem]
    assert all(text.isprintable() for text in texts)
    assert bounded(held) == held
