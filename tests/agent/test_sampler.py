"""When a device is asked for a sample; and that one which gives none is known for it."""

import asyncio
from typing import Any

import pytest
from tests.agent.fakes import Agent, FakeDevice

from derops.errors import DeviceError, DeviceRefusedError, DeviceTimeoutError
from derops_agent.asset import sampler
from derops_agent.asset.device import GuardedDevice
from derops_agent.ports import Reading


class Sampled(FakeDevice):
    """Fails a number of samples, then gives them; tells when it was asked."""

    def __init__(self, failure: DeviceError, times: int) -> None:
        super().__init__()
        self.failure, self.left = failure, times
        self.given = asyncio.Event()

    async def sample(self) -> Reading:
        if self.left:
            self.left -= 1
            raise self.failure
        self.given.set()
        return await super().sample()


async def test_the_first_sample_is_stored_at_once_also_just_after_the_machine_s_boot(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "PERIOD_SECONDS", 0.001)
    agent.clock.mono_us = 20_000_000  # since the boot; the interval is an hour
    monkeypatch.setattr(type(agent.controller), "telemetry_interval_seconds", 3600)
    taken: asyncio.Queue[Reading] = asyncio.Queue()

    class Outbox:
        add = staticmethod(taken.put_nowait)

    device = GuardedDevice(FakeDevice())
    running = asyncio.create_task(
        sampler.sample_for_ever(device, agent.controller, Outbox(), agent.clock)  # type: ignore[arg-type]
    )
    await asyncio.wait_for(taken.get(), 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)


@pytest.mark.parametrize(
    ("failure", "silent"),
    [
        (DeviceTimeoutError("no answer within 2 s"), True),
        (DeviceRefusedError("exception 2"), False),
    ],
)
async def test_samples_that_do_not_come_are_told_until_one_does(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, failure: DeviceError, *, silent: bool
) -> None:
    monkeypatch.setattr(sampler, "PERIOD_SECONDS", 0.001)
    device = Sampled(failure, times=2)
    told: list[Any] = []
    note = agent.controller.note_missed_sample

    def noted(error: DeviceError | None) -> None:
        note(error)
        agent.clock.pass_seconds(10)
        told.append(agent.controller.device_facts())

    monkeypatch.setattr(agent.controller, "note_missed_sample", noted)

    class Outbox:
        def add(self, reading: Reading) -> None: ...

    guarded = GuardedDevice(device)
    running = asyncio.create_task(
        sampler.sample_for_ever(guarded, agent.controller, Outbox(), agent.clock)  # type: ignore[arg-type]
    )
    await asyncio.wait_for(device.given.wait(), 10)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    assert len(told) == 2
    assert bool(told[-1] and told[-1].silent_since_us) == silent
    assert str(failure) in str(told[-1])
    await agent.controller.turn()
    await agent.give(await device.sample())
    assert not agent.controller.device_facts().ByteSize()  # type: ignore[union-attr]
