"""How much an agent may say of dispatches that nobody holds."""

from derops_headend.fleet.unknown import MOST_AT_ONCE, UnknownDispatches

DAY_US = 86_400_000_000


def test_each_asset_has_its_own_allowance_and_gets_it_back_within_a_day() -> None:
    subject = UnknownDispatches()

    assert all(subject.take("a", 5) for _ in range(MOST_AT_ONCE))
    assert not subject.take("a", 5)
    assert subject.take("b", 5)

    assert sum(subject.take("a", 5 + DAY_US // 2) for _ in range(MOST_AT_ONCE)) == MOST_AT_ONCE // 2
    assert sum(subject.take("a", 9 * DAY_US) for _ in range(9999)) == MOST_AT_ONCE


def test_a_clock_that_is_set_back_neither_gives_nor_takes_for_long() -> None:
    subject = UnknownDispatches()
    assert all(subject.take("a", 9 * DAY_US) for _ in range(MOST_AT_ONCE))

    assert not subject.take("a", DAY_US)
    assert subject.take("a", 2 * DAY_US)


def test_an_asset_that_is_gone_leaves_nothing() -> None:
    subject = UnknownDispatches()
    subject.take("a", 5)

    subject.forget("a")

    assert subject._used == {}
