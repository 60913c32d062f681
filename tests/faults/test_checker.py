"""The checker catches each way in which a promise can be broken."""

from dataclasses import replace

import pytest
from tests.faults.checker import Row, Stored, violations
from tests.field.sender import Journal

JOURNAL = Journal(
    "a", "outbox", sent={1: [(10, 1.0), (11, 2.0)], 2: [(20, 3.0)], 3: [(30, 4.0)]}, acknowledged=2
)
ROWS = (
    Row(asset_uid="a", ts_us=10, watts=1.0, received_us=100),
    Row(asset_uid="a", ts_us=11, watts=2.0, received_us=100),
    Row(asset_uid="a", ts_us=20, watts=3.0, received_us=101),
)


def test_what_was_promised_and_kept_is_no_violation() -> None:
    assert list(violations([JOURNAL], Stored(rows=ROWS))) == []


def test_what_was_not_acknowledged_may_be_there_or_not() -> None:
    more = Row(asset_uid="a", ts_us=30, watts=4.0, received_us=102)

    assert list(violations([JOURNAL], Stored(rows=(*ROWS, more)))) == []


def test_quarantine_is_a_place_too() -> None:
    assert (
        list(violations([JOURNAL], Stored(rows=ROWS[:2], quarantined=frozenset({("a", 2)})))) == []
    )


@pytest.mark.parametrize(
    ("rows", "violation"),
    [
        (ROWS[:2], "lost: a batch 2, 1 samples"),
        (ROWS[1:], "lost: a batch 1, 1 samples"),
        ((*ROWS, ROWS[0]), "duplicate: a at 10"),
        ((replace(ROWS[0], watts=9.0), *ROWS[1:]), "altered: a at 10: 9.0 is not 1.0"),
        ((*ROWS, replace(ROWS[0], ts_us=99)), "invented: a at 99"),
        ((*ROWS, replace(ROWS[0], asset_uid="b")), "invented: 1 rows of b, which nobody played"),
        ((*ROWS[:2], replace(ROWS[2], received_us=99)), "out of order: a batch 2"),
    ],
)
def test_a_broken_promise_is_named(rows: tuple[Row, ...], violation: str) -> None:
    assert list(violations([JOURNAL], Stored(rows=rows))) == [violation]
