"""Links and facts that change as fast as they can, to keep the operator from what is ordered."""

import asyncio
import time
from contextlib import suppress
from itertools import cycle

from tests.operator.crowd import FLOWS, Crowd

from derops.data_path import AssetFault, Link
from derops.wire.v1 import control_pb2
from derops_operator.cluster.client import Manifest
from derops_operator.cluster.status_writer import BURST, DISPATCH_BURST, WRITES_PER_SECOND
from derops_operator.cluster.token_bucket import TokenBucket
from derops_operator.resources.objects import Kind, ObjectKey
from derops_operator.workqueue import Lanes

ASSETS, FEW = 400, 40
BROKEN = control_pb2.LinkState(link=Link.SAMPLING, reason=AssetFault.NO_SAMPLES, message="none")
SILENT = control_pb2.LinkState(link=Link.DEVICE, reason=AssetFault.DEVICE_SILENT, message="none")
PATIENCE_SECONDS = 60


def is_order(key: ObjectKey) -> bool:
    return key.kind is Kind.DISPATCH


def now_us() -> int:
    return time.time_ns() // 1000


class Running:
    """A crowd whose queues are worked off, as the operator does it."""

    def __init__(self, assets: int) -> None:
        self._work, self._publishing = (Lanes[ObjectKey](is_order) for _ in range(2))
        self.crowd = Crowd(
            assets,
            work=self._work,
            publishing=self._publishing,
            bucket=TokenBucket(WRITES_PER_SECOND, BURST),
            now_us=now_us,
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Crowd:
        core = self.crowd.core
        for queue, step in (
            (self._work.urgent, core.reconcile),
            (self._work.other, core.reconcile),
            (self._publishing.urgent, core.publish),
            (self._publishing.other, core.publish),
        ):

            async def work(queue=queue, step=step) -> None:  # type: ignore[no-untyped-def]
                while True:
                    await core.work(queue, await queue.get(), step)

            self._tasks += [asyncio.create_task(work()) for _ in range(4)]
        return self.crowd

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks)
        self._work.close()
        self._publishing.close()


async def flip(crowd: Crowd) -> None:
    """Have every link and every judgement change, again and again."""
    for path in cycle((FLOWS, BROKEN, SILENT, None)):
        for name in crowd.names:
            crowd.connect(name, path)
            crowd.disconnect(name)
            crowd.connect(name, path)
        await asyncio.sleep(0)


async def test_what_flips_delays_no_status_of_another_tenants_dispatch() -> None:
    """R180: a gateway, or all agents of a tenant, flip what they say as fast as they can."""
    async with Running(ASSETS) as crowd:
        stored = asyncio.Event()
        before: list[int] = []

        def note(key: ObjectKey, manifest: Manifest) -> None:
            if key == ObjectKey(Kind.DISPATCH, "other", "peak"):
                before.append(crowd.written[Kind.ASSET])
                stored.set()

        crowd.on_write = note
        flipping = asyncio.create_task(flip(crowd))
        while crowd.written[Kind.ASSET] < BURST - DISPATCH_BURST:
            await asyncio.sleep(0)
        begun = crowd.written[Kind.ASSET]
        crowd.add_asset("other", "battery-0")
        crowd.add_dispatch("other", "peak", "battery-0")
        await asyncio.wait_for(stored.wait(), PATIENCE_SECONDS)
        flipping.cancel()

    # Behind all of them it would have been one of the last.
    assert before[0] - begun < ASSETS / 4


async def test_what_flips_changes_the_condition_of_an_asset_seldom() -> None:
    """R181: the same, to have an asset's condition written again and again."""
    begun = time.monotonic()
    async with Running(FEW) as crowd:
        flipping = asyncio.create_task(flip(crowd))
        while crowd.written[Kind.ASSET] < 5 * FEW:
            await asyncio.sleep(0)
        flipping.cancel()
    minutes = 1 + (time.monotonic() - begun) // 60

    assert max(crowd.changes.values()) <= 2 * minutes
