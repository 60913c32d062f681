"""What all models of resources share."""

from typing import Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

API_VERSION = "derops.io/v1alpha1"
"""Group and version of both kinds."""


class Section(BaseModel):
    """A part of a resource: frozen, camelCase in manifests, snake_case in code."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True
    )


class Metadata(Section):
    """The parts of an object's metadata that decide anything."""

    namespace: str
    name: str
    uid: str
    generation: int = 0
    resource_version: str = ""
    creation_timestamp: AwareDatetime
    deletion_timestamp: AwareDatetime | None = None
    finalizers: tuple[str, ...] = ()


class Condition(Section):
    """One statement, in the shape that ``kubectl wait --for=condition`` reads."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    observed_generation: int | None = None
    last_transition_time: AwareDatetime
