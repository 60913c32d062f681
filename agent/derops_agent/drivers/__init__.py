"""Drivers: one module or package for each kind of device."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from derops_agent.clock import Clock
from derops_agent.drivers.units import UnitOptions
from derops_agent.ports import Device

KINDS = ("simulated", "sunspec", "modbus")
"""What ``driver.kind`` may be."""


def check_options(config: Mapping[str, Any]) -> UnitOptions | None:
    """Check the ``driver`` section of an asset without opening the device.

    Returns:
        Where a device on a bus is: no other asset may have the same.

    Raises:
        DriverOptionError: It names the option and what is allowed.
        SettingError: The file of a profile is wrong; it names file, line and key.
    """
    options = {key: value for key, value in config.items() if key != "kind"}
    if config["kind"] == "sunspec":
        from derops_agent.drivers.sunspec import parse_options as parse_sunspec

        return parse_sunspec(options)
    if config["kind"] == "modbus":
        from derops_agent.drivers.modbus import parse_options as parse_modbus

        return parse_modbus(options)[0]
    from derops_agent.drivers.simulated.options import parse_options

    parse_options(options)
    return None


async def open_device(config: Mapping[str, Any], data_directory: Path, clock: Clock) -> Device:
    """Open the device that ``config`` describes.

    Args:
        config: The ``driver`` section of an asset: ``kind`` and the driver's own options.
        data_directory: The asset's own folder.
        clock: For the times of samples.

    Raises:
        SettingError: The file of a profile is wrong.
        ValueError: The kind is not known, or an option is not; the message names it.
    """
    options = {key: value for key, value in config.items() if key != "kind"}
    if config["kind"] == "simulated":
        # Imported here so that an agent pays only for the drivers that it uses.
        from derops_agent.drivers.simulated import open_simulated

        device: Device = await open_simulated(options, data_directory, clock)
        return device
    if config["kind"] == "sunspec":
        from derops_agent.drivers.sunspec import open_sunspec

        unit: Device = await open_sunspec(options, clock)
        return unit
    if config["kind"] == "modbus":
        from derops_agent.drivers.modbus import open_modbus

        profiled: Device = await open_modbus(options, clock)
        return profiled
    raise ValueError(f"driver kind {config['kind']!r} is not known; known: {', '.join(KINDS)}")
