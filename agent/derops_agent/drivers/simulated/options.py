"""The options of a simulated device, and what is wrong with them."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from derops_agent.drivers.options import DriverOptionError, explain
from derops_agent.drivers.simulated.battery import Battery
from derops_agent.drivers.simulated.charger import MINIMUM_WATTS, Charger
from derops_agent.drivers.simulated.faults import Faults
from derops_agent.drivers.simulated.generator import Generator
from derops_agent.drivers.simulated.load import Load
from derops_agent.drivers.simulated.solar import Solar
from derops_agent.drivers.simulated.stepping import Physics

Watts = Annotated[int, Field(ge=0, le=10**12)]
Ramp = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Percent = Annotated[float, Field(ge=0, le=100)]
Hour = Annotated[float, Field(ge=0, le=24)]
Section = TypeVar("Section", bound=BaseModel)


class Options(BaseModel):
    """The options of all models; each adds its own."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, allow_inf_nan=False
    )
    type: ClassVar[str]
    """The DERAsset type that the model stands for."""

    model: str
    speed: float = Field(default=1.0, ge=1, le=100_000)
    start_at_hour: Hour | None = None
    seed: int = 0
    max_injection_watts: Watts = 0
    max_absorption_watts: Watts = 0
    step_watts: Annotated[int, Field(ge=1, le=10**12)] = 1
    """To what it rounds each setpoint, towards zero."""

    reversion_max_seconds: Annotated[int, Field(ge=1, le=65_535)] | None = None
    """The most that its own reversion timer can be set to; None = it has no timer."""

    faults: Faults = Faults()

    def build(self) -> Physics[Any]:
        """Return the physics."""
        raise NotImplementedError

    @property
    def injection_watts(self) -> int:
        """The most that the device can inject; 0 = it cannot."""
        return self.max_injection_watts

    @property
    def absorption_watts(self) -> int:
        """The most that the device can absorb; 0 = it cannot."""
        return self.max_absorption_watts

    @property
    def rated_watts(self) -> int:
        """Full load in either direction."""
        return max(self.injection_watts, self.absorption_watts)

    @model_validator(mode="after")
    def _has_a_rating(self) -> Self:
        if not self.rated_watts:
            names = [
                name
                for name, can in (
                    ("maxInjectionWatts", type(self).injection_watts is Options.injection_watts),
                    ("maxAbsorptionWatts", type(self).absorption_watts is Options.absorption_watts),
                )
                if can
            ]
            raise ValueError(f"{' or '.join(names)} must be above 0")
        return self


class _Injects(Options):
    @property
    def absorption_watts(self) -> int:
        """Nothing: this model only injects."""
        return 0


class _Absorbs(Options):
    @property
    def injection_watts(self) -> int:
        """Nothing: this model only absorbs."""
        return 0


class BatteryOptions(Options):
    """Options of a battery."""

    type = "Battery"
    energy_capacity_watt_hours: float = Field(gt=0)
    initial_state_of_charge_percent: Percent = 50.0
    reserve_percent: Annotated[float, Field(ge=0, lt=100)] = 0.0
    ramp_watts_per_second: Ramp | None = None
    idle_watts: Annotated[float, Field(ge=0)] | None = None
    charge_efficiency: Annotated[float, Field(gt=0, le=1)] = 0.95
    discharge_efficiency: Annotated[float, Field(gt=0, le=1)] = 0.95

    def build(self) -> Battery:
        """Return the physics."""
        idle = self.idle_watts
        return Battery(
            max_injection_watts=self.injection_watts,
            max_absorption_watts=self.absorption_watts,
            capacity_watt_hours=self.energy_capacity_watt_hours,
            initial_percent=self.initial_state_of_charge_percent,
            reserve_percent=self.reserve_percent,
            ramp_watts_per_second=self.ramp_watts_per_second or self.rated_watts / 2,
            idle_watts=self.energy_capacity_watt_hours / 2000 if idle is None else idle,
            charge_efficiency=self.charge_efficiency,
            discharge_efficiency=self.discharge_efficiency,
        )


class SolarOptions(_Injects):
    """Options of a solar inverter."""

    type = "Solar"
    panel_watts: Annotated[float, Field(gt=0)] | None = None
    ramp_watts_per_second: Ramp | None = None
    cloudiness: Annotated[float, Field(ge=0, le=1)] = 0.3
    sunrise_hour: Hour = 6.0
    sunset_hour: Hour = 20.0

    @model_validator(mode="after")
    def _day_has_two_ends(self) -> Self:
        if self.sunrise_hour >= self.sunset_hour:
            raise ValueError("sunriseHour must be before sunsetHour (hours of the day in UTC)")
        return self

    def build(self) -> Solar:
        """Return the physics."""
        return Solar(
            max_injection_watts=self.injection_watts,
            panel_watts=self.panel_watts or 1.2 * self.injection_watts,
            ramp_watts_per_second=self.ramp_watts_per_second or self.rated_watts / 2,
            cloudiness=self.cloudiness,
            sunrise_hour=self.sunrise_hour,
            sunset_hour=self.sunset_hour,
            seed=self.seed,
        )


class ChargerOptions(_Absorbs):
    """Options of an EV charger."""

    type = "EVCharger"
    max_absorption_watts: Annotated[int, Field(ge=MINIMUM_WATTS, le=10**12)]
    ramp_watts_per_second: Ramp | None = None
    sessions_per_day: Annotated[int, Field(ge=1, le=24)] = 4

    def build(self) -> Charger:
        """Return the physics."""
        return Charger(
            max_absorption_watts=self.absorption_watts,
            ramp_watts_per_second=self.ramp_watts_per_second or self.rated_watts / 2,
            sessions_per_day=self.sessions_per_day,
            seed=self.seed,
        )


class GeneratorOptions(_Injects):
    """Options of a generator."""

    type = "Generator"
    ramp_watts_per_second: Ramp | None = None
    start_up_seconds: Annotated[float, Field(ge=0, le=3600)] = 10.0
    cool_down_seconds: Annotated[float, Field(ge=0, le=3600)] = 30.0

    def build(self) -> Generator:
        """Return the physics."""
        return Generator(
            max_injection_watts=self.injection_watts,
            ramp_watts_per_second=self.ramp_watts_per_second or self.rated_watts / 10,
            start_up_seconds=self.start_up_seconds,
            cool_down_seconds=self.cool_down_seconds,
        )


class LoadOptions(_Absorbs):
    """Options of a load."""

    type = "Load"
    base_watts: Annotated[float, Field(ge=0)] | None = None

    def build(self) -> Load:
        """Return the physics."""
        base = self.base_watts
        return Load(
            max_absorption_watts=self.absorption_watts,
            base_watts=0.6 * self.absorption_watts if base is None else base,
            seed=self.seed,
        )


MODELS: dict[str, type[Options]] = {
    "battery": BatteryOptions,
    "solar": SolarOptions,
    "evCharger": ChargerOptions,
    "generator": GeneratorOptions,
    "load": LoadOptions,
}
"""What ``model`` may be."""


def parse_options(options: Mapping[str, Any]) -> Options:
    """Check the options of a simulated device.

    Raises:
        DriverOptionError: It names the option and what is allowed.
    """
    model = options.get("model")
    section = MODELS.get(model) if isinstance(model, str) else None
    if section is None:
        problem = "is required and not set" if model is None else f"got {model!r}"
        raise DriverOptionError("model", _SOURCE, f"{problem}; allowed: {', '.join(MODELS)}")
    try:
        return section.model_validate(dict(options))
    except ValidationError as error:
        name, problem = explain(error, section)
        raise DriverOptionError(name, f"{_SOURCE}, {model}", problem) from error


_SOURCE = "simulated device"
