"""The agent's settings: a YAML file; the environment overrides its top-level scalars."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from derops.errors import SettingError
from derops.settings import GivenPath, LogLevel, Port
from derops_agent.drivers import KINDS, check_options
from derops_agent.drivers.options import DriverOptionError, first_of, line_of
from derops_agent.drivers.units import UnitOptions, same_device
from derops_agent.telemetry.outbox_store import DEFAULT_MAX_AGE_SECONDS, DEFAULT_MAX_BYTES

ENVIRONMENT_PREFIX = "DEROPS_AGENT_"
_LABEL = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


def _alias(name: str) -> str:
    """Return the key in the file: camelCase, abbreviations in capitals as Kubernetes has them."""
    return to_camel(name).replace("CaFile", "CAFile")


class _SettingsSection(BaseModel):
    model_config = ConfigDict(
        alias_generator=_alias, populate_by_name=False, extra="forbid", frozen=True
    )


class LocalLimits(_SettingsSection):
    """Hard limits of the site, whoever orders. Absent = the device's own rating."""

    max_injection_watts: int | None = Field(default=None, ge=0)
    max_absorption_watts: int | None = Field(default=None, ge=0)


class DriverSettings(BaseModel):
    """Which driver; all other keys are its options."""

    model_config = ConfigDict(extra="allow", frozen=True)
    kind: Literal["simulated", "sunspec", "modbus"]

    def options(self) -> dict[str, Any]:
        """Return the driver's kind and options as the file has them."""
        return {"kind": self.kind, **(self.model_extra or {})}


class AssetSettings(_SettingsSection):
    """One asset: its name, its certificate and its device."""

    namespace: str = Field(pattern=_LABEL)
    name: str = Field(pattern=_LABEL)
    certificate_directory: GivenPath
    limits: LocalLimits = LocalLimits()
    driver: DriverSettings
    settle_seconds: float = Field(default=5, ge=0)


class AgentSettings(_SettingsSection):
    """The whole file."""

    gateways: list[str] = Field(min_length=1)
    server_name: str = Field(default="derops-gateway", min_length=1)
    server_ca_file: GivenPath
    data_directory: GivenPath
    ops_address: str = Field(default="0.0.0.0", min_length=1)  # noqa: S104  # probes come from outside the pod
    ops_port: Port = 0
    log_level: LogLevel = "INFO"
    max_clock_offset_milliseconds: int = Field(default=5000, gt=0)
    outbox_max_bytes: int = Field(default=DEFAULT_MAX_BYTES, ge=65536)
    outbox_max_age_seconds: int = Field(default=DEFAULT_MAX_AGE_SECONDS, ge=60)
    assets: list[AssetSettings] = Field(min_length=1)


def load(file: Path, environment: Mapping[str, str] = os.environ) -> AgentSettings:
    """Read the settings from the file and the environment.

    Raises:
        SettingError: One is wrong; it names the file or variable, the key and what is allowed.
    """
    try:
        text = file.read_text(encoding="utf-8")
        document = yaml.safe_load(text)
    except OSError as error:
        raise SettingError("--config", str(file), error.strerror or "cannot be read") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise SettingError("--config", str(file), f"is not YAML: {problem}") from error
    if not isinstance(document, dict):
        raise SettingError("--config", str(file), "must be a mapping of keys to values")
    overridden = _override(document, environment)
    try:
        settings = AgentSettings.model_validate(document)
    except ValidationError as error:
        first = first_of(error)
        key = ".".join(str(part) for part in first["loc"])
        at = f"{file}:{line_of(text, first['loc'])}"
        source = overridden.get(str(first["loc"][0]), at) if first["loc"] else str(file)
        raise SettingError(key, source, _problem(first)) from error
    _check(settings, lambda *path: f"{file}:{line_of(text, path)}")
    return settings


def _override(document: dict[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Put values of the environment into ``document``; return the variable of each such key."""
    sources = {}
    for name, field in AgentSettings.model_fields.items():
        variable = ENVIRONMENT_PREFIX + name.upper()
        if name == "assets" or variable not in environment:
            continue
        text = environment[variable]
        key = field.alias or name
        document[key] = text.split(",") if name == "gateways" else text
        sources[key] = variable
    return sources


def _problem(error: Any) -> str:
    if error["type"] == "extra_forbidden":
        return "is not a known key" + _allowed(error["loc"])
    if error["type"] == "missing":
        return "is required and not set"
    if error["loc"][-1:] == ("kind",):
        return f"must be one of {', '.join(KINDS)}; got {error['input']!r}"
    return f"{error['msg']}; got {error['input']!r}"


def _allowed(location: tuple[int | str, ...]) -> str:
    section: type[BaseModel] = AgentSettings
    if "limits" in location[:-1]:
        section = LocalLimits
    elif "assets" in location[:-1]:
        section = AssetSettings
    return "; allowed: " + ", ".join(str(f.alias) for f in section.model_fields.values())


def _check(settings: AgentSettings, source: Callable[..., str]) -> None:
    """Check what no field can tell alone.

    Raises:
        SettingError: Of the first that is wrong.
    """
    units: dict[str, UnitOptions | None] = {}
    for index, asset in enumerate(settings.assets):
        name = f"{asset.namespace}/{asset.name}"
        if name in units:
            raise SettingError(
                f"assets.{index}.name",
                source("assets", index, "name"),
                f"{name} is there twice; allowed: once",
            )
        units[name] = _check_device(index, asset, units, source)
    for index, gateway in enumerate(settings.gateways):
        port_text = gateway.rpartition(":")[2]
        if ":" not in gateway or not port_text.isdigit() or not 0 < int(port_text) < 65536:
            raise SettingError(
                "gateways", source("gateways", index), f"must be host:port; got {gateway!r}"
            )


def _check_device(
    index: int,
    asset: AssetSettings,
    units: Mapping[str, UnitOptions | None],
    source: Callable[..., str],
) -> UnitOptions | None:
    """Check an asset's device; return its unit on a bus, None if it has none.

    Args:
        index: Of the asset in the file.
        asset: Its settings.
        units: Of the assets before it, by their names.
        source: Returns where a key stands.
    """
    try:
        unit = check_options(asset.driver.options())
    except DriverOptionError as error:
        path = ("assets", index, "driver", *error.setting.split("."))
        key = ".".join(str(part) for part in path)
        raise SettingError(key, source(*path), error.problem) from error
    for other, of_other in units.items():
        if unit is not None and of_other is not None and same_device(unit, of_other):
            raise SettingError(
                f"assets.{index}.driver.unitId",
                source("assets", index, "driver", "unitId"),
                f"unit {unit.unit_id} at {unit.host}:{unit.port} is that of {other}; two "
                f"assets cannot control one device",
            )
    return unit
