"""Who floods finds no room; whoever does not still has some."""

from derops_headend.fleet.shares import Shares


def test_a_holder_has_no_more_than_it_may() -> None:
    shares = Shares(total=1000, most=100, sure=10)

    assert [shares.take("a", 60), shares.take("a", 60), shares.take("b", 60)] == [True, False, True]
    assert shares.used == 120


def test_once_all_is_taken_each_still_has_its_sure_share() -> None:
    shares = Shares(total=200, most=100, sure=10)
    assert shares.take("a", 100)
    assert shares.take("b", 100)

    assert not shares.take("c", 11)
    assert shares.take("c", 10)
    assert not shares.take("a", 1)
    assert shares.used == 210


def test_what_is_given_back_can_be_taken_again_and_leaves_nothing() -> None:
    shares = Shares(total=1000, most=100, sure=10)
    shares.take("a", 100)
    shares.add("a", -100)

    assert shares._of == {}
    assert shares.used == 0
    assert shares.take("a", 100)


def test_what_shrinks_always_has_room() -> None:
    shares = Shares(total=100, most=100, sure=10)
    shares.take("a", 100)

    assert shares.has_room("a", -50)
    assert not shares.has_room("a", 1)


def test_half_full_is_crowded() -> None:
    shares = Shares(total=100, most=100, sure=10)
    shares.take("a", 50)
    assert not shares.is_crowded
    shares.take("a", 1)
    assert shares.is_crowded
