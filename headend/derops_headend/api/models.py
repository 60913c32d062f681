"""What all bodies have in common."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""The names of namespaces, assets and dispatches; each has at most 63 characters."""


class Model(BaseModel):
    """JSON in camelCase; unknown fields and values of another type are refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        frozen=True,
    )
