"""How late a device shows what was written, as a profile or a driver's option says it."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from derops_agent.ports import ReadBack

_DEFAULT = ReadBack()
MOST_SECONDS = 3600


class ReadBackOptions(BaseModel):
    """How soon a device shows what was written to it, and how often it may be written."""

    model_config = ConfigDict(
        alias_generator=to_camel, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    delay_seconds: Annotated[float, Field(ge=0, le=MOST_SECONDS)] = _DEFAULT.delay_seconds
    """From a write to the first question."""

    pace_seconds: Annotated[float, Field(ge=0.1, le=MOST_SECONDS)] = _DEFAULT.pace_seconds
    """From one question to the next."""

    patience_seconds: Annotated[float, Field(gt=0, le=MOST_SECONDS)] = _DEFAULT.patience_seconds
    """For how long after a write another value is no fault; then it is written again, and after
    each further write waited for twice as long."""

    most_writes: Annotated[int, Field(ge=1, le=1000)] = _DEFAULT.most_writes
    """How often one setpoint is written for the same dispatches."""

    @model_validator(mode="after")
    def _asks_in_time(self) -> Self:
        if self.delay_seconds >= self.patience_seconds:
            raise ValueError(
                f"delaySeconds {self.delay_seconds:g} must be below patienceSeconds "
                f"{self.patience_seconds:g}: the device would not be asked in time"
            )
        return self

    def settings(self) -> ReadBack:
        """Return the same for a capability."""
        return ReadBack(**self.model_dump())
