"""Drivers: one module or package for each kind of device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from derops_agent.clock import Clock
from derops_agent.ports import Device

KINDS = ("simulated",)
"""What ``driver.kind`` may be."""


async def open_device(config: Mapping[str, Any], data_directory: Path, clock: Clock) -> Device:
    """Open the device that ``config`` describes.

    Args:
        config: The ``driver`` section of an asset: ``kind`` and the driver's own options.
        data_directory: The asset's own folder.
        clock: For the times of samples.

    Raises:
        ValueError: The kind is not known, or an option is not; the message names it.
    """
    options = {key: value for key, value in config.items() if key != "kind"}
    if config["kind"] == "simulated":
        # Imported here so that an agent pays only for the drivers that it uses.
        from derops_agent.drivers.simulated import open_simulated

        device: Device = await open_simulated(options, data_directory, clock)
        return device
    raise ValueError(f"driver kind {config['kind']!r} is not known; known: {', '.join(KINDS)}")
