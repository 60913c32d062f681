"""Whose key is the operator's, over renewals and set clocks."""

import pytest

from derops.errors import IdentityRefusedError
from derops_headend.access.operator_key import OperatorKeys

MINUTE_US = 60_000_000
NOW = 1_800_000_000_000_000


def accepts(keys: OperatorKeys, key: str, now_us: int) -> bool:
    try:
        keys.check(key, now_us)
    except IdentityRefusedError as refused:
        return not refused.transient  # it always is: the mount may lag
    return True


def test_the_first_key_has_no_predecessor() -> None:
    keys = OperatorKeys().follow("a", NOW)

    assert keys == OperatorKeys(current="a")
    assert accepts(keys, "a", NOW)
    assert not accepts(keys, "b", NOW)


def test_before_a_key_is_known_nobody_is_the_operator() -> None:
    assert not accepts(OperatorKeys(), "a", NOW)


def test_the_predecessor_is_good_for_ten_minutes() -> None:
    keys = OperatorKeys(current="a").follow("b", NOW)

    assert keys.follow("b", NOW + MINUTE_US) == keys
    assert accepts(keys, "b", NOW + 99 * MINUTE_US)
    assert accepts(keys, "a", NOW + 10 * MINUTE_US - 1)
    assert not accepts(keys, "a", NOW + 10 * MINUTE_US)


def test_only_the_last_predecessor_is_good() -> None:
    keys = OperatorKeys(current="a").follow("b", NOW).follow("c", NOW + 1)

    assert accepts(keys, "b", NOW + 2)
    assert not accepts(keys, "a", NOW + 2)


@pytest.mark.parametrize("back_us", [MINUTE_US, 10**15])
def test_a_clock_that_is_set_back_makes_nothing_good_for_longer(back_us: int) -> None:
    keys = OperatorKeys(current="a").follow("b", NOW)

    assert not accepts(keys, "a", NOW - back_us)
