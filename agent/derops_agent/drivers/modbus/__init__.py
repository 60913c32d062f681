"""Devices that differ only in their registers, each described by a profile."""

from derops_agent.drivers.modbus.device import ProfiledDevice, open_modbus, parse_options

__all__ = ["ProfiledDevice", "open_modbus", "parse_options"]
