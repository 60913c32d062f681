"""What all bodies have in common."""

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
"""Of namespaces, assets and dispatches, all of 63 characters at most."""


class Model(BaseModel):
    """JSON in camelCase; nothing that is not named, and no value of another type, is taken."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        strict=True,
        frozen=True,
    )
