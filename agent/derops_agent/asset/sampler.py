"""Sampling: into the outbox and to the controller, more often while a setpoint holds."""

import asyncio
import random

from derops_agent.asset.controller import AssetController
from derops_agent.asset.device import GuardedDevice
from derops_agent.clock import Clock
from derops_agent.telemetry.outbox import Outbox

PERIOD_SECONDS = 1.0


async def sample_for_ever(
    device: GuardedDevice, controller: AssetController, outbox: Outbox, clock: Clock
) -> None:
    """Measure once a second while it is needed, else at the telemetry interval."""
    # Assets of one process spread over the second.
    due = asyncio.get_running_loop().time() + random.uniform(0, PERIOD_SECONDS)
    stored_us: int | None = None
    while True:
        await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
        due = max(due + PERIOD_SECONDS, asyncio.get_running_loop().time())
        interval_us = controller.telemetry_interval_seconds * 1_000_000
        # Half a period of slack: a tick that comes a little early still counts.
        wanted = stored_us is None or clock.monotonic_us() - stored_us >= interval_us - 500_000
        if not wanted and not controller.holding:
            continue
        reading = await device.sample()
        if reading is None:
            controller.note_missed_sample(device.complaint)
            continue
        if wanted:
            outbox.add(reading)
            stored_us = clock.monotonic_us()
        controller.take(reading)
