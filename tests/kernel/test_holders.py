"""Who held the stream of an asset, and which stream is the newest."""

from hypothesis import given
from hypothesis import strategies as st

from derops.holders import (
    FEW_HOLDERS,
    MAX_HOLDERS,
    MAX_HOLDERS_IN_ALL,
    REMEMBERED_US,
    Holder,
    Holders,
    Rank,
    digest_of,
    is_plausible_epoch,
    outranks,
)
from derops.wire.v1 import control_pb2, dispatch_pb2

SECOND_US = 1_000_000
DAY_US = 86_400 * SECOND_US
TRUE = digest_of("true")


def ledger(**serials: str) -> dispatch_pb2.IdentityLedger:
    known = dispatch_pb2.IdentityLedger()
    for slot, serial_number in serials.items():
        getattr(known, slot).serial_number = serial_number
    return known


LEDGER = ledger(previous="1", current="2", next="3")
RANKS = st.builds(Rank, st.integers(0, 5), st.sampled_from(["", "gone", "1", "2", "3"]))


def test_the_place_of_the_key_goes_before_the_epoch() -> None:
    order = [Rank(9, "gone"), Rank(8, "1"), Rank(7, "2"), Rank(6, "3"), Rank(7, "3")]

    for index, each in enumerate(order):
        assert not outranks(each, each, LEDGER)
        assert all(outranks(each, older, LEDGER) for older in order[:index])


@given(one=RANKS, other=RANKS)
def test_of_two_streams_one_is_the_newest_wherever_it_is_asked(one: Rank, other: Rank) -> None:
    assert not (outranks(one, other, LEDGER) and outranks(other, one, LEDGER))


def test_a_key_that_nobody_told_of_is_ordered_by_epoch() -> None:
    assert outranks(Rank(2, ""), Rank(1, "3"), LEDGER)
    assert not outranks(Rank(1, ""), Rank(1, "1"), LEDGER)


def test_an_epoch_may_be_five_minutes_ahead() -> None:
    assert is_plausible_epoch(1_300_000, 1_000_000_000)
    assert not is_plausible_epoch(1_300_001, 1_000_000_000)


def test_whoever_held_a_stream_for_three_minutes_is_not_pushed_out_within_a_day() -> None:
    forgotten = list[int]()
    holders = Holders(lambda: forgotten.append(1))
    holders.put("a", TRUE, Holder(0, 0, 180 * SECOND_US), 180 * SECOND_US)
    for number in range(1, 3001):
        at_us = (180 + 28 * number) * SECOND_US
        holders.put("a", digest_of(f"t{number}"), Holder(at_us - 28 * SECOND_US, 0, at_us), at_us)

    assert TRUE in holders.of("a")
    assert len(holders.of("a")) == MAX_HOLDERS
    assert len(forgotten) == 3001 - MAX_HOLDERS


def test_a_flood_of_ids_pushes_out_itself_also_where_the_agent_had_just_come() -> None:
    holders = Holders()
    holders.put("a", TRUE, Holder(0, 0, 15_000), 15_000)
    for number in range(1, 3001):
        at_us = 15_000 + 20_000 * number
        holders.put("a", digest_of(f"t{number}"), Holder(at_us - 20_000, 0, at_us), at_us)

    assert TRUE in holders.of("a")


def test_when_all_assets_together_have_too_many_each_keeps_a_few() -> None:
    holders = Holders()
    for asset in range(MAX_HOLDERS_IN_ALL // MAX_HOLDERS):
        for number in range(MAX_HOLDERS):
            holders.put(f"a{asset}", f"{number}", Holder(0, 0, number), 0)
    for number in range(1, 100):
        holders.put("late", f"{number}", Holder(0, 0, number), 0)
    assert len(holders.of("late")) == FEW_HOLDERS

    holders.forget("a1")
    for number in range(100):
        holders.put("late", f"{number}", Holder(0, 0, number), 0)
    assert len(holders.of("late")) == 100


def test_after_24_hours_an_instance_is_as_if_it_had_never_been() -> None:
    told = control_pb2.Instance(id=TRUE, opened_us=1, replaced_us=2)

    assert not Holders().merge("a", [told], REMEMBERED_US + 3)
    assert Holders().merge("a", [told], REMEMBERED_US + 2)


@given(
    told=st.lists(
        st.builds(
            control_pb2.Instance,
            id=st.sampled_from([digest_of("1"), digest_of("2")]),
            opened_us=st.integers(1, 5),
            replaced_us=st.integers(0, 5),
            alive=st.booleans(),
        ),
        max_size=6,
    ),
    seed=st.randoms(),
)
def test_all_who_heard_the_same_remember_the_same(
    told: list[control_pb2.Instance], seed: object
) -> None:
    one, other = Holders(), Holders()
    one.merge("a", told, 10)
    shuffled = [*told, *told[:2]]
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    for each in shuffled:
        other.merge("a", [each], 10)

    assert one.of("a") == other.of("a")
    assert not other.merge("a", one.messages("a"), 10)


def test_an_id_is_remembered_by_a_digest_and_another_length_is_not_taken() -> None:
    assert len(digest_of("x" * 128)) == 32
    assert not Holders().merge("a", [control_pb2.Instance(id="x" * 10_000, opened_us=1)], 1)
