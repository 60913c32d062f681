"""Settings: what several programs have, and one line for what is wrong, never a traceback."""

import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from derops.errors import SchemaTooNewError, SettingError
from derops.ids import is_trust_domain

EXIT_BAD_SETTING = 2
"""Exit code of a program that was started with a missing or wrong setting."""


def split_words(value: object) -> object:
    """Return the words of a list that is separated by commas; anything else as it is."""
    if not isinstance(value, str):
        return value
    return tuple(word.strip() for word in value.split(",") if word.strip())


def _host_and_port(text: str) -> str:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise ValueError(f"{text!r} is not host:port")
    return text


def _trust_domain(text: str) -> str:
    if not is_trust_domain(text):
        raise ValueError("is not a SPIFFE trust domain")
    return text


def _not_empty(value: object) -> object:
    if value == "":
        raise ValueError("is empty, which would be the working directory; leave it out instead")
    return value


HostPort = Annotated[str, AfterValidator(_host_and_port)]
GivenPath = Annotated[Path, BeforeValidator(_not_empty)]
TrustDomain = Annotated[str, AfterValidator(_trust_domain)]
Port = Annotated[int, Field(ge=0, le=65535)]
"""0 = any that is free."""

LogLevel = Annotated[
    Literal["DEBUG", "INFO", "WARNING", "ERROR"],
    BeforeValidator(lambda value: value.upper() if isinstance(value, str) else value),
]
ResourceName = Annotated[str, Field(pattern=r"^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$")]
"""A name as Kubernetes has them for most kinds: that of a DNS subdomain."""


class ProgramSettings(BaseSettings):
    """Settings that each program in the cluster has; a subclass adds its prefix and more."""

    model_config = SettingsConfigDict(frozen=True)

    ops_address: str = Field(default="0.0.0.0", min_length=1)  # noqa: S104  # probes: the kubelet
    log_level: LogLevel = "INFO"


Settings = TypeVar("Settings", bound=BaseSettings)


def load_settings(kind: type[Settings]) -> Settings:
    """Read ``kind`` from the environment, or end the program with one line on stderr."""
    try:
        return kind()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        prefix = str(kind.model_config.get("env_prefix", ""))
        name = str(first["loc"][0])  # what follows is a place in a list
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
