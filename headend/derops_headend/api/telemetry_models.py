"""Questions and answers about telemetry, as the API checks and describes them."""

from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from derops_headend.api.models import Model
from derops_headend.api.parameters import Instant, WholeNumber
from derops_headend.api.problems import invalid
from derops_headend.storage.quantities import QUANTITIES
from derops_headend.storage.resolution import LEAST_POINTS, TelemetrySource

LONGEST = timedelta(days=400)
MOST_POINTS, POINTS = 5_000, 1_500
MOST_ITEMS, ITEMS = 1_000, 100

COLUMNS = {to_camel(each): each for each in QUANTITIES}


def _check_quantities(text: str) -> str:
    names = text.split(",", len(COLUMNS))
    if len(set(names)) < len(names) or not set(names) <= set(COLUMNS):
        raise PydanticCustomError(
            "quantities",
            "is no list, with commas, of some of these, each once: {known}",
            {"known": ", ".join(COLUMNS)},
        )
    return text


class TimeSpan(BaseModel):
    """A time, and of which asset."""

    model_config = ConfigDict(alias_generator=to_camel, extra="forbid", frozen=True)

    first: Instant | None = Field(
        default=None, alias="from", description="An hour before `to` where it is absent."
    )
    end: Instant | None = Field(
        default=None,
        alias="to",
        description="That instant is not part of it; at most 400 days after `from`. Default: now.",
    )
    uid: str = Field(
        default="",
        max_length=253,
        pattern=r"^[A-Za-z0-9._-]*$",
        description="Of another asset that had this name: see `otherUids`.",
    )

    def between(self, now: datetime) -> tuple[datetime, datetime]:
        """Return the first instant, and the end.

        Raises:
            ProblemError: INVALID: the end is not later, or too much later.
        """
        end = self.end or now
        first = self.first or end - timedelta(hours=1)
        if first >= end:
            raise invalid("from", "not_before", "is not before `to`")
        if end - first > LONGEST:
            raise invalid("from", "too_long", f"is more than {LONGEST.days} days before `to`")
        return first, end


class TelemetryQuery(TimeSpan):
    """What is asked for."""

    quantities: Annotated[str, AfterValidator(_check_quantities)] = Field(
        default="activePowerWatts,stateOfChargePercent",
        description="With commas, of " + ", ".join(f"`{each}`" for each in COLUMNS),
    )
    resolution: Literal["auto", "raw", "1m", "15m"] = Field(
        default="auto",
        description="`auto` = the finest that has at most `maxPoints`; it may be wider than 15m.",
    )
    max_points: WholeNumber = Field(default=POINTS, ge=LEAST_POINTS, le=MOST_POINTS)

    @property
    def columns(self) -> tuple[str, ...]:
        """The quantities as columns of ``telemetry``."""
        return tuple(COLUMNS[each] for each in self.quantities.split(","))


class PageQuery(TimeSpan):
    """A page of a list."""

    limit: WholeNumber = Field(default=ITEMS, ge=1, le=MOST_ITEMS)
    after: str = Field(
        default="",
        max_length=500,
        pattern=r"^[A-Za-z0-9_-]*$",
        description="`next` of the page before.",
    )


class MeasurementQuery(TimeSpan):
    """Which measurement."""

    measurement: str = Field(
        default="",
        max_length=253,
        pattern=r"^[^\x00-\x1f\x7f]*$",
        description="One of `names`; without, only these are answered.",
    )
    limit: WholeNumber = Field(default=POINTS, ge=1, le=MOST_POINTS)


class RolledUp(Model):
    """A quantity in steps; which of these there are depends on the quantity."""

    mean: list[float | None] | None = None
    min: list[float | None] | None = None
    max: list[float | None] | None = None
    sum: list[float | None] | None = None


class SpanOfTime(Model):
    """From one instant up to another."""

    from_: datetime = Field(alias="from")
    to: datetime


class TelemetryGap(SpanOfTime):
    """A time without samples."""

    reason: str = Field(
        description="`NoSamples`: none came. `Dropped`: they are older than what is kept. Else why "
        "the agent had to drop some."
    )
    samples: int | None = Field(default=None, description="That the agent dropped.")


class HeldSetpoint(Model):
    """A setpoint that the device was given."""

    from_: datetime = Field(alias="from")
    to: datetime | None = Field(description="null = no end is known")
    watts: int | None
    dispatch: str | None
    dispatch_uid: str


_Column = list[float | None] | RolledUp | None


class Telemetry(Model):
    """Columns: each has a value for each instant in `time`; null = it was not measured."""

    namespace: str
    name: str
    uid: str
    other_uids: list[str] = Field(description="Of other assets that had this name.")
    from_: datetime = Field(alias="from", description="With steps: where the first one begins.")
    to: datetime = Field(description="With steps: where the last one ends.")
    resolution: TelemetrySource
    step_seconds: int | None = Field(description="null = samples as they are")
    source: str
    units: dict[str, str]
    sign: str
    stale_after_seconds: float = Field(
        description="A newest value that is older says nothing of now, and a longer hole is a gap."
    )
    time: list[int] = Field(
        description="Of samples, or of the beginnings of steps; milliseconds since 1970."
    )
    active_power_watts: _Column = None
    reactive_power_vars: _Column = None
    voltage_volts: _Column = None
    frequency_hertz: _Column = None
    state_of_charge_percent: _Column = None
    energy_injected_watt_hours: _Column = Field(
        default=None,
        description="Samples: the device's counter. Steps: energy made from power, of each step.",
    )
    energy_absorbed_watt_hours: _Column = Field(default=None, description="The same.")
    temperature_celsius: _Column = None
    setpoint_watts: _Column = Field(default=None, description="Steps: see `setpoints`.")
    max_generation_watts: _Column = None
    max_load_watts: _Column = None
    available_power_watts: _Column = None
    clock_offset_seconds: _Column = Field(
        default=None,
        description="The gateway's clock less the agent's, where that was more than 5 s.",
    )
    gaps: list[TelemetryGap]
    has_more_gaps: bool
    provisional: list[SpanOfTime] | None = Field(
        default=None, description="Steps in there may change yet: samples may still come."
    )
    omitted: list[str] | None = Field(
        default=None, description="Asked for, and in samples only: steps do not have them."
    )
    setpoints: list[HeldSetpoint] | None = Field(
        default=None, description="With steps, where `setpointWatts` is asked for; the newest 500."
    )


class Measurements(Model):
    """Values of one measurement that has no column of its own, and the names of all."""

    uid: str
    other_uids: list[str]
    names: list[str] = Field(description="What was measured in that time; at most 500.")
    time: list[datetime]
    values: list[float]
    next: datetime | None = Field(description="`from` of what follows; null = that was all.")


class DroppedSamples(Model):
    """Samples that an agent had to drop."""

    from_: datetime = Field(alias="from")
    to: datetime
    samples: int
    reason: str
    received_at: datetime


class ConnectionEvent(Model):
    """What happened to a connection of the asset's agent."""

    at: datetime
    event: str
    reason: str
    message: str
    epoch: str
    peer: str
    serial_number: str
    replica: str


class GapPage(Model):
    """The newest first."""

    uid: str
    other_uids: list[str]
    items: list[DroppedSamples]
    next: str | None = Field(description="`after` of the next page; null = that was all.")


class ConnectionPage(Model):
    """The newest first."""

    uid: str
    other_uids: list[str]
    items: list[ConnectionEvent]
    next: str | None = Field(description="`after` of the next page; null = that was all.")
