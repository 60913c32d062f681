"""Profiles from files. An error names file, line and key."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import yaml
from pydantic import ValidationError

from derops.errors import DeviceRefusedError, SettingError
from derops_agent.drivers.modbus.profile import Profile
from derops_agent.drivers.options import DriverOptionError, explain, first_of, line_of

KeyPath: TypeAlias = tuple[int | str, ...]
Problem: TypeAlias = tuple[KeyPath, str]
"""Where something is wrong, and what."""


def load_profile(file: Path) -> Profile:
    """Read a profile.

    Raises:
        DriverOptionError: The file cannot be read; it names the option ``profile``.
        SettingError: Its content is wrong; it names file, line and key.
    """
    try:
        text = file.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        document = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise DriverOptionError("profile", "modbus device", f"{file}: {reason}") from error
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise DriverOptionError("profile", "modbus device", f"is not YAML: {problem}") from error
    if not isinstance(document, dict):
        raise SettingError("profile", f"{file}:1", "must be a mapping of keys to values")
    _refuse_repeated_keys(node, file)
    try:
        profile = Profile.model_validate(document)
    except ValidationError as error:
        key, problem = explain(error, Profile)
        raise SettingError(
            key, f"{file}:{line_of(text, first_of(error)['loc'])}", problem
        ) from error
    for path, problem in _contradictions(profile):
        raise SettingError(_key(path), f"{file}:{line_of(text, path)}", problem)
    return profile


def _refuse_repeated_keys(node: Any, file: Path) -> None:
    """Refuse a key that is there twice; YAML libraries take the last one in silence."""
    if isinstance(node, yaml.SequenceNode):
        for each in node.value:
            _refuse_repeated_keys(each, file)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if key.value in seen:
                at = f"{file}:{key.start_mark.line + 1}"
                raise SettingError(str(key.value), at, "is there twice; allowed: once")
            seen.add(key.value)
            _refuse_repeated_keys(value, file)


def _contradictions(profile: Profile) -> Iterator[Problem]:
    yield from _overlaps(profile)
    yield from _wrong_timers(profile)
    for name, control in profile.controls.values().items():
        if control.fallback is not None and profile.timer_of(name) is None:
            yield ("controls", name, "fallback"), f"no timer guards {name}"
        if control.release is not None:
            try:
                control.value.encode(control.release)
            except DeviceRefusedError as error:
                yield ("controls", name, "release"), str(error)


def _overlaps(profile: Profile) -> Iterator[Problem]:
    owners: dict[int, str] = {}
    for path, register in profile.written():
        for address in range(register.address, register.address + register.registers):
            if address in owners:
                yield path, f"writes register {address}, which {owners[address]} writes too"
            owners[address] = _key(path)


def _wrong_timers(profile: Profile) -> Iterator[Problem]:
    names = profile.controls.names()
    guarded: set[str] = set()
    for index, timer in enumerate(profile.timers):
        path = ("timers", index, "guards")
        for name in timer.guards:
            if name not in names and "guards" in timer.model_fields_set:
                has = ", ".join(sorted(names)) or "none"
                yield path, f"{name} is not a control of this profile; it has: {has}"
            if name in guarded & names:
                yield path, f"{name} has two timers; allowed: one"
            guarded.add(name)


def _key(path: KeyPath) -> str:
    return ".".join(str(part) for part in path)
