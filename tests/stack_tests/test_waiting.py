"""What tests wait with: a busy machine is to make nobody late, and a slow program is."""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from tests.waiting import PatientLoop, Starved, now, until

SPIN = "import os; os.sched_setaffinity(0, {int(os.environ['CPU'])})\nwhile True: pass"


async def test_a_time_out_does_not_count_what_other_programs_took() -> None:
    assert isinstance(asyncio.get_running_loop(), PatientLoop)
    began = now()
    async with asyncio.timeout(0.5):
        time.sleep(1)  # as if nobody had let this process run
        for _ in range(3):
            await asyncio.sleep(0.01)

    assert 0.03 <= now() - began < 0.5


async def test_a_time_out_counts_what_was_waited_and_computed() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await asyncio.Event().wait()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(_compute(), 0.2)

    assert time.monotonic() - began >= 0.4


async def _compute() -> None:
    while True:
        await asyncio.sleep(0)


@contextmanager
def spinning(cpu: int, count: int) -> Iterator[list[int]]:
    """Run programs that want one processor all the time."""
    with ExitStack() as opened:
        running = []
        for _ in range(count):
            program = [sys.executable, "-c", SPIN]
            process = opened.enter_context(
                subprocess.Popen(program, env={**os.environ, "CPU": str(cpu)})
            )
            opened.callback(process.kill)
            running.append(process.pid)
        yield running


async def test_who_gets_no_processor_is_owed_that_time_and_who_asks_for_none_is_not() -> None:
    cpu = min(os.sched_getaffinity(0))
    with spinning(cpu, 2) as pids, subprocess.Popen(["sleep", "60"]) as idle:
        await asyncio.sleep(0.5)
        starved, rested = Starved(lambda: pids), Starved(lambda: [idle.pid])
        await until(lambda: starved.seconds() > 1)
        owed = rested.seconds()
        idle.kill()

    assert owed < 0.5
