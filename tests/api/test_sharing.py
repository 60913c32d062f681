"""Places that callers share: whoever came last finds one, and nobody's wait is forgotten."""

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from derops_headend.api.shares import Places, may_take


def fill(most: int, holders: int) -> Iterator[int]:
    """Yield what each holder gets who takes all that it may, one after the other."""
    free = most
    for _ in range(holders):
        held = 0
        while may_take(held, free):
            held, free = held + 1, free - 1
        yield held


def test_each_newcomer_finds_a_place() -> None:
    assert list(fill(10, 5)) == [4, 2, 2, 1, 1]
    assert min(fill(256, 12)) == 1


@given(most=st.integers(1, 300), turns=st.lists(st.integers(0, 3), max_size=600))
def test_few_together_never_have_all(most: int, turns: list[int]) -> None:
    """Whatever order they take in, and give back in: fewer than five leave one of ten or more."""
    held, free = [0] * 4, most
    for who in turns:
        if may_take(held[who], free):
            held[who], free = held[who] + 1, free - 1
        elif held[who]:
            held[who], free = held[who] - 1, free + 1
        assert free > 0 or most < 10


async def test_turns_are_handed_out_in_order() -> None:
    places, got = Places(1), list[str]()

    async def take(holder: str) -> None:
        async with places.hold(holder):
            got.append(holder)
            await asyncio.sleep(0)

    await asyncio.gather(*map(take, ["a", "a", "a", "b", "c"]))

    assert got == ["a", "a", "b", "c", "a"]


@pytest.mark.parametrize("is_freed_first", [True, False])
async def test_who_waits_no_more_keeps_no_place(is_freed_first: bool) -> None:
    """A wait ends by a time limit in the very step of the loop in which its turn comes."""
    places = Places(1)

    async def take(holder: str) -> None:
        async with places.hold(holder):
            pass

    async with AsyncExitStack() as held:
        await held.enter_async_context(places.hold("a"))
        waiting = [asyncio.create_task(take(holder)) for holder in ("b", "b", "c")]
        await asyncio.sleep(0)
        if is_freed_first:
            await held.aclose()
        for each in waiting:
            each.cancel()
        await held.aclose()
    await asyncio.gather(*waiting, return_exceptions=True)

    async with asyncio.timeout(10), places.hold("d"):
        pass
    assert not places._waiting
