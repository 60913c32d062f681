"""Inverters and batteries that speak SunSpec over Modbus TCP."""

from derops_agent.drivers.sunspec.device import SunSpecDevice, open_sunspec
from derops_agent.drivers.sunspec.options import parse_options

__all__ = ["SunSpecDevice", "open_sunspec", "parse_options"]
