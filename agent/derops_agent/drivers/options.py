"""What is said of a wrong option of a driver."""

from pydantic import BaseModel, ValidationError

from derops.errors import SettingError


class DriverOptionError(SettingError, ValueError):
    """An option of the driver is wrong; a ValueError too, as ``drivers.open_device`` promises."""


def explain(error: ValidationError, section: type[BaseModel]) -> tuple[str, str]:
    """Return the name of the first wrong option and what is wrong with it."""
    # A misspelt key is the cause, what is missing for it only the consequence.
    first = min(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    name = ".".join(str(part) for part in first["loc"]) or "options"
    if first["type"] == "missing":
        return name, "is required and not set"
    if first["type"] == "extra_forbidden":
        allowed = ", ".join(sorted(_names(_section_of(section, first["loc"][:-1]))))
        return name, f"is not an option; allowed: {allowed}"
    if not first["loc"]:
        return name, first["msg"].removeprefix("Value error, ")
    return name, f"{first['msg']}; got {first['input']!r}"


def _section_of(section: type[BaseModel], path: tuple[int | str, ...]) -> type[BaseModel]:
    for part in path:
        for field in section.model_fields.values():
            kind = field.annotation
            if field.alias == part and isinstance(kind, type) and issubclass(kind, BaseModel):
                section = kind
    return section


def _names(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]
