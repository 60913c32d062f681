"""A sample that was taken and is not stored is found, and nothing else."""

import pytest
from tests.rollback.counting import Life, find_lost

ALL = [100.5 + second for second in range(10)]
LIFE = Life(since=100.0, looks=[(105.2, 5), (110.7, 10)])


def test_nothing_is_lost_where_all_is_stored() -> None:
    assert find_lost(LIFE, ALL) == 0


@pytest.mark.parametrize("missing", [{3}, {9}, {8, 9}, {4, 7, 8}, set(range(10))])
def test_what_is_missing_is_counted(missing: set[int]) -> None:
    kept = [at for index, at in enumerate(ALL) if index not in missing]

    assert find_lost(LIFE, kept) == len(missing)


def test_what_another_process_measured_is_not_its_own() -> None:
    kept = [90.5, 91.5, *(at for at in ALL if at != 104.5)]

    assert find_lost(LIFE, kept) == 1


def test_one_that_was_counted_and_not_wanted_is_not_lost() -> None:
    assert find_lost(Life(since=100.0, looks=[(109.7, 11)]), ALL) == 0
