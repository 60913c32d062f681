"""The checker catches each way in which a promise can be broken."""

from dataclasses import replace

import pytest
from tests.faults.checker import GapRow, Kept, Row, Stored, checked, violations
from tests.field.journal import Gap, Journal, Point, Sent

BATCHES = {
    1: Sent(points={Point("", 10): 110, Point("", 11): 111, Point("units", 10): 1}),
    2: Sent(points={Point("", 20): 120}),
    3: Sent(points={Point("", 30): 130}),
}
ROWS = (
    Row(asset_uid="a", point=Point("", 10), value_hash=110, received_us=100),
    Row(asset_uid="a", point=Point("", 11), value_hash=111, received_us=100),
    Row(asset_uid="a", point=Point("units", 10), value_hash=1),
    Row(asset_uid="a", point=Point("", 20), value_hash=120, received_us=101),
)
GAP = Gap(10, 20, 3, "OutboxFull")
GAP_ROW = GapRow(asset_uid="a", outbox_id="outbox", sequence=2, gap=GAP)


def kept(sequence: int, **changes: object) -> Kept:
    held = Kept(asset_uid="a", outbox_id="outbox", sequence=sequence, sent=BATCHES[sequence])
    return replace(held, **changes)  # type: ignore[arg-type]


def journal(*, acknowledged: int = 2) -> Journal:
    """Return a journal of three batches."""
    written = Journal("a", "outbox")
    for sequence, sent in BATCHES.items():
        written.record(sequence, sent)
    written.acknowledge(acknowledged, now=1.0)
    return written


def with_gap() -> Journal:
    """Return a journal whose second batch was replaced by a gap that also stands for the first."""
    written = Journal("a", "outbox")
    written.record(1, BATCHES[1])
    written.record(2, BATCHES[2])
    written.hello(2)
    written.record(2, Sent(gap=GAP))
    written.acknowledge(2, now=1.0)
    return written


def told(written: Journal, stored: Stored) -> list[str]:
    return [str(violation) for violation in violations([written], stored)]


@pytest.mark.parametrize(
    "stored",
    [
        Stored(rows=ROWS),
        Stored(
            rows=(*ROWS, Row(asset_uid="a", point=Point("", 30), value_hash=130, received_us=102))
        ),
        Stored(rows=ROWS[:3], quarantined=[kept(2)]),
        Stored(rows=ROWS[:3], logged=[kept(2), kept(3)]),
        Stored(logged=[kept(1), kept(2), kept(1), kept(2)]),
    ],
    ids=["stored", "more than promised", "quarantine", "log", "log twice, after a new stream"],
)
def test_what_was_promised_and_kept_is_no_violation(stored: Stored) -> None:
    assert told(journal(), stored) == []


@pytest.mark.parametrize(
    ("stored", "violation"),
    [
        (Stored(rows=ROWS[:3]), "lost: a 2: 1 of 1"),
        (Stored(rows=ROWS[1:]), "lost: a 1: 1 of 3"),
        (Stored(rows=(*ROWS[:2], ROWS[3])), "lost: a 1: 1 of 3"),
        (Stored(rows=ROWS[:3], logged=[kept(3)]), "lost: a 2: 1 of 1"),
        (
            Stored(rows=(*ROWS, ROWS[0])),
            "duplicate: a: Point(name='', ts_us=10) is there twice",
        ),
        (
            Stored(rows=(replace(ROWS[0], value_hash=9), *ROWS[1:])),
            "altered: a 1: Point(name='', ts_us=10)",
        ),
        (
            Stored(rows=(*ROWS, replace(ROWS[0], point=Point("", 99)))),
            "invented: a: Point(name='', ts_us=99)",
        ),
        (
            Stored(rows=(*ROWS, replace(ROWS[0], asset_uid="b"))),
            "invented: b: 1 rows of an asset that nobody played",
        ),
        (
            Stored(rows=ROWS, gaps=[GAP_ROW]),
            "invented: a 2: Gap(from_us=10, to_us=20, samples=3, reason='OutboxFull')",
        ),
        (
            Stored(rows=ROWS, logged=[kept(3, sent=BATCHES[2])]),
            "altered: a 3: in the log or in quarantine",
        ),
        (
            Stored(rows=ROWS, quarantined=[kept(3, outbox_id="another")]),
            "invented: a 3: in the log or in quarantine",
        ),
        (
            Stored(rows=(*ROWS[:3], replace(ROWS[3], received_us=99))),
            "out of order: a 2: received at 99, after a later one at 100",
        ),
        (Stored(logged=[kept(2), kept(1)]), "out of order: a 1: after 2 in the log"),
        (Stored(rows=ROWS, holes=["records 5 to 6"]), "lost: : records 5 to 6"),
    ],
)
def test_a_broken_promise_is_named(stored: Stored, violation: str) -> None:
    assert told(journal(), stored) == [violation]


def test_what_was_acknowledged_after_the_look_began_need_not_be_there() -> None:
    stored = Stored(rows=ROWS)

    assert list(violations([journal(acknowledged=3)], stored, {"outbox": 2})) == []


def test_a_gap_stands_for_what_it_replaced_which_may_be_there_or_not() -> None:
    assert told(with_gap(), Stored(gaps=[GAP_ROW])) == []
    assert told(with_gap(), Stored(rows=ROWS, gaps=[GAP_ROW])) == []


def test_a_gap_is_lost_altered_or_there_twice() -> None:
    assert told(with_gap(), Stored()) == ["lost: a 2: 1 of 1"]
    wrong = replace(GAP_ROW, gap=GAP._replace(samples=4))
    assert told(with_gap(), Stored(gaps=[wrong]))[0].startswith("altered: a 2: Gap(")
    assert told(with_gap(), Stored(gaps=[GAP_ROW, GAP_ROW])) == [
        "duplicate: a 2: a gap is there twice"
    ]


def test_an_acknowledgement_of_what_was_never_sent_is_a_contradiction() -> None:
    assert told(journal(acknowledged=4), Stored(rows=ROWS, logged=[kept(3)])) == [
        "contradiction: a: 4 was acknowledged and never sent"
    ]


def test_an_outbox_that_forgets_before_the_acknowledgement_is_a_contradiction() -> None:
    written = journal(acknowledged=1)
    written.hello(3)
    written.acknowledge(2, now=2.0)
    assert written.acknowledged == 1  # an echo of what the agent said itself
    written.acknowledge(3, now=2.0)

    assert told(written, Stored(rows=ROWS, logged=[kept(3)])) == [
        "contradiction: a: 2 was forgotten before it was acknowledged"
    ]


def test_one_sequence_with_two_contents_is_a_contradiction() -> None:
    written = journal()
    written.record(3, BATCHES[2])

    assert told(written, Stored(rows=ROWS)) == ["contradiction: a: 3 was sent with two contents"]


@pytest.mark.parametrize("replaced_is_there", [True, False])
def test_a_part_that_was_whole_is_forgotten_and_counted_from_then_on(
    replaced_is_there: bool,
) -> None:
    rows = ROWS if replaced_is_there else ()
    for written, stored, points, gaps in (
        (journal(), Stored(rows=ROWS), 4, 0),
        (with_gap(), Stored(rows=rows, gaps=[GAP_ROW]), len(rows), 1),
    ):
        ((_, done),) = checked([written], stored, {"outbox": 2})
        written.forget(done)

        assert 2 not in written.sent
        assert (done.through, done.points, done.gaps) == (2, points, gaps)
        assert told(written, Stored(counts_before={"a": (points, gaps)})) == []
        assert told(written, Stored(counts_before={"a": (points - 1, gaps)})) == [
            f"lost: a: {points - 1} points where an earlier check found {points}"
        ]
        assert told(written, Stored(counts_before={"a": (points + 1, gaps)})) == [
            f"invented: a: {points + 1} points where an earlier check found {points}"
        ]


def test_what_is_not_in_the_database_yet_is_not_forgotten() -> None:
    ((_, done),) = checked([journal()], Stored(rows=ROWS[:3], logged=[kept(2)]), {"outbox": 2})

    assert done.through == 1
