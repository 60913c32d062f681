"""What is wrong with an option of a driver, and where it stands."""

from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from derops.errors import SettingError


class DriverOptionError(SettingError, ValueError):
    """An option of the driver is wrong; a ValueError too, as ``drivers.open_device`` promises."""


def explain(error: ValidationError, section: type[BaseModel]) -> tuple[str, str]:
    """Return the name of the first wrong option and what is wrong with it."""
    first = first_of(error)
    name = ".".join(str(part) for part in first["loc"]) or "options"
    if first["type"] == "missing":
        return name, "is required and not set"
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(sorted(_names(_section_of(section, first["loc"][:-1]))))
        return name, f"is not an option; allowed: {allowed}"
    if not first["loc"] or first["type"] == "value_error":
        return name, first["msg"].removeprefix("Value error, ")
    return name, f"{first['msg']}; got {first['input']!r}"


def first_of(error: ValidationError) -> Any:
    """Return which of several mistakes to tell."""
    # A misspelt key is the cause; the key that is missing for it is the consequence.
    return min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")


def line_of(text: str, path: tuple[int | str, ...]) -> int:
    """Return the line of a key in a YAML text, or of what is nearest to it; the first is 1."""
    node, line = yaml.compose(text), 1
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [pair for pair in node.value if pair[0].value == part]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            found = [(each, each) for each in node.value[part : part + 1]]
        else:
            found = []
        if not found:
            break
        line, node = found[0][0].start_mark.line + 1, found[0][1]
    return line


def _section_of(section: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    for part in path:
        for field in section.model_fields.values():
            if field.alias == part:
                section = _model_in(field.annotation) or section
    return section


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    inner = (_model_in(each) for each in get_args(annotation))
    return next((each for each in inner if each is not None), None)


def _names(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]
