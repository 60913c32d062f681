"""Loading of settings: one line for what is wrong, exit code 2, never a traceback."""

import sys
from typing import NoReturn, TypeVar

from pydantic import ValidationError
from pydantic_settings import BaseSettings

from derops.errors import SchemaTooNewError, SettingError

EXIT_BAD_SETTING = 2
"""Exit code of a program that was started with a missing or wrong setting."""

Settings = TypeVar("Settings", bound=BaseSettings)


def load_settings(kind: type[Settings]) -> Settings:
    """Read ``kind`` from the environment, or end the program with one line on stderr."""
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        prefix = str(kind.model_config.get("env_prefix", ""))
        name = "_".join(str(part) for part in first["loc"])
        refuse_to_start(
            SettingError(prefix + name.upper(), "environment", _problem(first["type"], first))
        )


def refuse_to_start(error: SettingError | SchemaTooNewError) -> NoReturn:
    """Print one line and end the program with exit code 2."""
    what = "setting " if isinstance(error, SettingError) else ""
    sys.stderr.write(f"cannot start: {what}{error}\n")
    sys.exit(EXIT_BAD_SETTING)


def _problem(kind: str, details: object) -> str:
    facts = details if isinstance(details, dict) else {}
    if kind == "missing":
        return "is required and not set"
    message = str(facts.get("msg", "is not valid")).removeprefix("Value error, ")
    return f"{message}; got {facts.get('input')!r}"
