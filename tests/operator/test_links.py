"""Links of many assets that flap: how often that is written, on the real core."""

import pytest
from tests.lifecycle.operating import Agenda
from tests.operator.crowd import FLOWS, Crowd

from derops.schedules import SECOND_US
from derops_operator.cluster.token_bucket import TokenBucket
from derops_operator.resources.objects import Kind

T0 = 1_800_000_000 * SECOND_US
ASSETS = 100


class Rig(Crowd):
    """A crowd in a time that a test sets."""

    def __init__(self) -> None:
        self.now_us = T0
        self._agendas = Agenda(self.clock), Agenda(self.clock)
        work, publishing = self._agendas
        super().__init__(
            ASSETS,
            work=work,
            publishing=publishing,
            bucket=TokenBucket(1e9, 1e9),
            now_us=self.clock,
        )

    def clock(self) -> int:
        return self.now_us

    async def wait(self, seconds: float) -> None:
        """Let time pass, and have done what is due in it."""
        end_us = self.now_us + round(seconds * SECOND_US)
        while True:
            await self._work_off()
            if self.now_us == end_us:
                return
            self.now_us = min(end_us, self.now_us + SECOND_US)

    async def _work_off(self) -> None:
        work, publishing = self._agendas
        some = True
        while some:
            some = False
            for queue, step in ((work, self.core.reconcile), (publishing, self.core.publish)):
                for key in queue.take_due():
                    some = True
                    await self.core.work(queue, key, step)

    async def flow(self) -> None:
        """Have all agents connect, and their data flow."""
        await self.wait(10)
        for name in self.names:
            self.connect(name)
        await self.wait(5)
        assert {self.changes[name] for name in self.names} == {1}
        self.changes.clear()


@pytest.fixture
async def rig() -> Rig:
    rig = Rig()
    await rig.flow()
    return rig


async def test_links_that_flap_faster_than_the_limit_cost_no_write_of_the_data(rig: Rig) -> None:
    rig.written.clear()
    for _ in range(5):
        for name in rig.names:
            rig.disconnect(name)
        await rig.wait(50)
        for name in rig.names:
            rig.connect(name)
        await rig.wait(5)

    assert not any(rig.changes.values())
    assert rig.written == {Kind.ASSET: 2 * 5 * ASSETS}, "Connected, as ever"


async def test_links_that_flap_slower_cost_two_changes_each_in_the_limit_at_most(rig: Rig) -> None:
    rig.written.clear()
    for _ in range(5):
        for name in rig.names:
            rig.disconnect(name)
        await rig.wait(65)
        for name in rig.names:
            rig.connect(name)
        await rig.wait(5)

    assert {rig.changes[name] for name in rig.names} == {2 * 5}
    # That it flows again comes with Connected: three writes for each time, not four.
    assert rig.written == {Kind.ASSET: 3 * 5 * ASSETS}


async def test_a_network_that_is_down_for_a_while_is_told_once_and_its_return_at_once(
    rig: Rig,
) -> None:
    for name in rig.names:
        rig.disconnect(name)
    await rig.wait(3600)
    assert {rig.changes[name] for name in rig.names} == {1}
    for name in rig.names:
        rig.connect(name, None)
    await rig.wait(10)
    for name in rig.names:
        rig.tell(name, FLOWS)
    await rig.wait(1)

    assert {rig.changes[name] for name in rig.names} == {2}
