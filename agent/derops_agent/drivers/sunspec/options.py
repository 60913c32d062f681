"""The options of a SunSpec device."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field, ValidationError

from derops_agent.drivers.options import DriverOptionError, explain
from derops_agent.drivers.read_back import ReadBackOptions
from derops_agent.drivers.sunspec.models import BASE_REGISTERS
from derops_agent.drivers.units import UnitOptions


class SunSpecOptions(UnitOptions):
    """Where a device is, and its peculiarities."""

    toggle_enable: bool = False
    """Switch a function off before its value changes; else some devices keep the old value."""

    base_register: Annotated[int, Field(ge=0, le=65535)] | None = None
    """The register at which its models begin; None = the agent searches."""

    @property
    def base_registers(self) -> tuple[int, ...]:
        """The registers at which the models may begin."""
        return BASE_REGISTERS if self.base_register is None else (self.base_register,)

    read_back: ReadBackOptions = ReadBackOptions()


def parse_options(options: Mapping[str, Any]) -> SunSpecOptions:
    """Check the options of a SunSpec device.

    Raises:
        DriverOptionError: It names the option and what is allowed.
    """
    try:
        return SunSpecOptions.model_validate(dict(options))
    except ValidationError as error:
        name, problem = explain(error, SunSpecOptions)
        raise DriverOptionError(name, "sunspec device", problem) from error
