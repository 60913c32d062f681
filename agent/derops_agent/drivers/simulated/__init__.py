"""Simulated devices: physics worth watching, a life of their own, and faults on demand."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from derops_agent.clock import Clock
from derops_agent.drivers.simulated.device import SimulatedDevice, open_device

STATE_FILE_NAME = "device.json"

__all__ = ["STATE_FILE_NAME", "SimulatedDevice", "open_device", "open_simulated"]


async def open_simulated(
    options: Mapping[str, Any], data_directory: Path, clock: Clock
) -> SimulatedDevice:
    """Open the simulated device of the asset whose folder is ``data_directory``.

    Raises:
        DriverOptionError: An option is wrong; it is a SettingError and a ValueError.
    """
    return await asyncio.to_thread(
        open_device, options, data_directory / STATE_FILE_NAME, clock.now_us
    )
