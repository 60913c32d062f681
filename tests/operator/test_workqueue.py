"""The queue's contract."""

import asyncio
from collections import Counter, defaultdict

from derops_operator.workqueue import Lanes, WorkQueue


def queue(**options: float) -> WorkQueue[str]:
    return WorkQueue(jitter=lambda: 1.0, **options)


async def test_a_key_queued_twice_is_handed_out_once() -> None:
    subject = queue()
    subject.add("a")
    subject.add("b")
    subject.add("a")

    assert [await subject.get(), await subject.get()] == ["a", "b"]
    assert len(subject) == 0


async def test_a_key_queued_during_its_work_comes_once_more_and_not_before() -> None:
    subject = queue()
    subject.add("a")
    assert await subject.get() == "a"

    subject.add("a")
    subject.add("a")
    assert len(subject) == 0
    assert not subject.idle

    subject.done("a")
    assert await subject.get() == "a"
    subject.done("a")
    assert subject.idle


async def test_ready_keys_do_not_keep_the_loop_from_all_else() -> None:
    subject = queue()
    turns: list[str] = []
    for key in ("a", "b"):
        subject.add(key)
        asyncio.get_running_loop().call_soon(turns.append, key)
        await subject.get()

        assert turns[-1] == key


async def test_in_a_turn_of_the_loop_one_of_many_workers_gets_a_key() -> None:
    subject, turns = queue(), 0
    got: list[tuple[int, str]] = []
    for number in range(20):
        subject.add(f"{number}")

    async def work() -> None:
        while True:
            key = await subject.get()
            got.append((turns, key))

    workers = [asyncio.create_task(work()) for _ in range(8)]
    while len(got) < 20:
        turns += 1
        await asyncio.sleep(0)
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)

    assert [key for _, key in got] == [f"{number}" for number in range(20)]
    assert max(Counter(turn for turn, _ in got).values()) == 1


async def test_a_worker_that_is_ended_leaves_the_others_their_keys() -> None:
    subject = queue()
    workers = [asyncio.create_task(subject.get()) for _ in range(3)]
    await asyncio.sleep(0)
    workers[0].cancel()
    await asyncio.gather(workers[0], return_exceptions=True)
    subject.add("a")
    subject.add("b")

    assert await asyncio.gather(*workers[1:]) == ["a", "b"]


async def test_what_is_urgent_does_not_wait_behind_what_is_not() -> None:
    subject: Lanes[str] = Lanes(str.isupper)
    for number in range(1000):
        subject.add(f"asset-{number}")
    subject.add("DISPATCH")
    subject.add_after("LATER", 0.001)

    assert len(subject) == 1001
    assert [await subject.urgent.get(), await subject.urgent.get()] == ["DISPATCH", "LATER"]
    assert await subject.other.get() == "asset-0"
    subject.close()


async def test_many_workers_never_work_on_one_key_together() -> None:
    subject = queue()
    working: dict[str, int] = defaultdict(int)
    most: dict[str, int] = defaultdict(int)
    done = asyncio.Event()
    left = 300

    async def work() -> None:
        nonlocal left
        while True:
            key = await subject.get()
            working[key] += 1
            most[key] = max(most[key], working[key])
            await asyncio.sleep(0)
            left -= 1
            if left > 0:
                subject.add(f"{left % 7}")
            working[key] -= 1
            subject.done(key)
            if left <= 0:
                done.set()

    workers = [asyncio.create_task(work()) for _ in range(5)]
    for number in range(7):
        subject.add(f"{number}")
    await done.wait()
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)

    assert set(most.values()) == {1}


async def test_delays_end_in_their_order_and_the_shortest_of_a_key_counts() -> None:
    subject = queue()
    subject.add_after("late", 0.04)
    subject.add_after("early", 0.02)
    subject.add_after("late", 30)
    subject.add_after("early", 0.01)

    assert [await subject.get(), await subject.get()] == ["early", "late"]
    subject.close()


async def test_a_delay_of_nothing_is_now() -> None:
    subject = queue()
    subject.add_after("a", 0)

    assert len(subject) == 1


async def test_the_back_off_doubles_up_to_its_limit_and_begins_anew_after_success() -> None:
    subject = queue(base_seconds=1.0, limit_seconds=5.0)

    assert [subject.add_failed("a") for _ in range(5)] == [1.0, 2.0, 4.0, 5.0, 5.0]
    subject.forget("a")
    assert subject.add_failed("a") == 1.0
    subject.close()


async def test_jitter_takes_away_at_most_half() -> None:
    subject: WorkQueue[str] = WorkQueue(base_seconds=2.0, jitter=lambda: 0.0)

    assert subject.add_failed("a") == 1.0
    subject.close()


async def test_a_closed_queue_leaves_no_timer() -> None:
    subject = queue()
    subject.add_after("a", 0.01)
    subject.close()
    await asyncio.sleep(0.03)

    assert len(subject) == 0


async def test_a_key_put_forward_again_and_again_costs_no_more() -> None:
    subject = queue()
    for number in range(10_000):
        subject.add_after("a", 1000 - number / 100)

    assert len(subject._heap) <= 1003
    subject.add_after("a", 0.001)
    assert await subject.get() == "a"
    subject.close()
