"""How those who wait hear of a write that serves many."""

import asyncio
from collections.abc import Sequence

from derops_headend.group_commit import GroupCommit, Settle


async def _write(_: Sequence[str]) -> None:
    await asyncio.sleep(0)


def _note(settled: list[str], item: str) -> Settle:
    return lambda _: settled.append(item)


async def test_all_of_a_write_is_settled_in_one_step_and_in_order() -> None:
    """What follows from them, an acknowledgement for each stream, is done once."""
    settled = list[str]()
    commit = GroupCommit(_write)
    for item in ("a", "b", "c"):
        commit.add(item, _note(settled, item))
    steps = list[int]()

    async def watch() -> None:
        while len(settled) < 3:
            steps.append(len(settled))
            await asyncio.sleep(0)

    watching, running = asyncio.create_task(watch()), asyncio.create_task(commit.run())
    await watching
    commit.close()
    await running

    assert settled == ["a", "b", "c"]
    assert set(steps) == {0}


async def test_a_write_that_is_cancelled_settles_its_items_as_never_durable() -> None:
    begun = asyncio.Event()

    async def stuck(_: Sequence[str]) -> None:
        begun.set()
        await asyncio.Event().wait()

    errors = list[BaseException | None]()
    commit = GroupCommit(stuck)
    running = asyncio.create_task(commit.run())
    commit.add("a", errors.append)
    await begun.wait()
    running.cancel()
    await asyncio.wait({running})

    assert [type(error) for error in errors] == [asyncio.CancelledError]


async def test_a_write_is_under_way_while_it_is_tried_again_and_not_longer() -> None:
    tries = 0

    async def fail_twice(_: Sequence[str]) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError("no space left")

    commit = GroupCommit(fail_twice)
    assert commit.seconds_under_way == 0
    running = asyncio.create_task(commit.run())
    settled = commit.put("a")
    while tries < 2:
        await asyncio.sleep(0)
    assert commit.seconds_under_way >= 0.04, "from its first try, before the pause"

    await settled
    commit.close()
    await running
    assert commit.seconds_under_way == 0
