"""Profiles from files: what is wrong is named with file, line and key, before anything runs."""

from pathlib import Path

import pytest
from tests.agent.modbus.test_device import PROFILES

from derops.errors import SettingError
from derops_agent.drivers.modbus.loading import load_profile
from derops_agent.drivers.options import DriverOptionError
from derops_agent.settings import load

GOOD = """\
name: Example
ratings:
  maxInjectionWatts: {watts: 5000}
measurements:
  activePowerWatts: {address: 0, type: int32}
controls:
  activePower:
    value: {address: 10, type: int32}
    enable: {address: 12}
    fallback: {address: 13, type: int32}
  generationLimit: {value: {address: 20, type: uint16}, release: 5000}
  energize: {address: 30}
timers:
  - {address: 40, type: uint16, guards: [activePower]}
remoteControl: {address: 50}
localControl: {address: 51, values: [1]}
"""

AGENT = """
gateways: ["gateway:8443"]
serverCAFile: ca.crt
dataDirectory: data
assets:
  - namespace: ns
    name: battery
    certificateDirectory: certs
    driver: {kind: modbus, host: inverter, profile: PROFILE}
"""


@pytest.mark.parametrize("file", sorted(PROFILES.glob("*.yaml")), ids=lambda file: file.name)
def test_an_example_is_a_profile(file: Path) -> None:
    assert load_profile(file).name.startswith("Example")


@pytest.mark.parametrize(
    ("old", "new", "line", "key", "problem"),
    [
        ("name: Example", "", 1, "name", "is required"),
        ("name:", "nmae:", 1, "nmae", "allowed: controls, localControl, measurements, name"),
        ("activePowerWatts", "power", 5, "measurements.power", "activePowerWatts, available"),
        (
            "{address: 0, type",
            "{adress: 0, type",
            5,
            "measurements.activePowerWatts.adress",
            "allowed: absent, address, byteOrder",
        ),
        ("address: 12", "address: 65536", 9, "controls.activePower.enable.address", "got 65536"),
        ("address: 0,", "address: -1,", 5, "measurements.activePowerWatts.address", "got -1"),
        (
            "value: {address: 10",
            "value: {address: 65535",
            8,
            "controls.activePower.value",
            "int32 at 65535 takes 2 registers and ends beyond register 65535",
        ),
        (
            "enable: {address: 12",
            "enable: {address: 11",
            9,
            "controls.activePower.enable",
            "writes register 11, which controls.activePower.value writes too",
        ),
        ("address: 50", "address: 40", 15, "remoteControl", "timers.0 writes too"),
        (", release: 5000", "", 11, "controls.generationLimit", "enable or release"),
        ("release: 5000", "release: 65536", 11, "controls.generationLimit.release", "cannot hold"),
        (
            "enable: {address: 12}",
            "enable: {address: 12}\n    step: 1.5",
            7,
            "controls.activePower",
            "step 1.5 must be a multiple of the scale 1 of value",
        ),
        ("[activePower]", "[loadLimit]", 14, "timers.0.guards", "not a control of this profile"),
        ("[activePower]", "[power]", 14, "timers.0.guards.0", "'activePower'"),
        ("[activePower]", "[energize]", 10, "controls.activePower.fallback", "no timer guards"),
        ("{address: 12}", "{address: 12, onValue: 0}", 9, "activePower.enable", "must differ"),
        ("{watts: 5000}", "{}", 3, "ratings.maxInjectionWatts", "watts or read"),
        ("values: [1]", "values: [70000]", 16, "localControl.values.0", "got 70000"),
        ("type: uint16", "type: uint8", 11, "generationLimit.value.type", "'uint16'"),
        ("{address: 0,", "{address: 0, address: 1,", 5, "address", "is there twice"),
        ("{address: 0,", "{address: 0, scale: .inf,", 5, "activePowerWatts.scale", "finite"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, old: str, new: str, line: int, key: str, problem: str
) -> None:
    file = tmp_path / "profile.yaml"
    assert old in GOOD
    file.write_text(GOOD.replace(old, new, 1))

    with pytest.raises(SettingError) as raised:
        load_profile(file)

    assert raised.value.setting.endswith(key)
    assert raised.value.source == f"{file}:{line}"
    assert problem in raised.value.problem


def test_two_timers_for_one_control_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "profile.yaml"
    second = "timers:\n  - {address: 41, type: uint16, guards: [activePower]}\n"
    file.write_text(GOOD.replace("timers:\n", second))

    with pytest.raises(SettingError, match=r"timers\.1\.guards .*yaml:15.*has two timers"):
        load_profile(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("a: [", "is not YAML"),
        ("- a", "must be a mapping"),
        ("", "mapping"),
    ],
)
def test_what_is_no_profile_is_told(tmp_path: Path, content: str | None, words: str) -> None:
    file = tmp_path / "profile.yaml"
    if content is not None:
        file.write_text(content)

    with pytest.raises(SettingError, match=words):
        load_profile(file)


def test_a_wrong_profile_ends_the_agent_at_its_line(tmp_path: Path) -> None:
    profile, file = tmp_path / "profile.yaml", tmp_path / "agent.yaml"
    profile.write_text(GOOD.replace("enable:", "enabel:"))
    file.write_text(AGENT.replace("PROFILE", str(profile)))

    with pytest.raises(SettingError, match=r"activePower\.enabel \(.*profile\.yaml:9\): is not an"):
        load(file, {})


def test_a_profile_that_is_not_there_is_named_where_the_agent_names_it(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(AGENT.replace("PROFILE", str(tmp_path / "none.yaml")))

    with pytest.raises(DriverOptionError):
        load_profile(tmp_path / "none.yaml")
    with pytest.raises(SettingError, match=r"assets\.0\.driver\.profile \(.*agent\.yaml:9\): .*No"):
        load(file, {})


def test_two_assets_cannot_have_one_unit_by_different_drivers(tmp_path: Path) -> None:
    profile, file = tmp_path / "profile.yaml", tmp_path / "agent.yaml"
    profile.write_text(GOOD)
    one = AGENT.replace("PROFILE", str(profile))
    second = one[one.index("  - namespace") :].replace("name: battery", "name: other")
    second = second[: second.index("    driver")] + "    driver: {kind: sunspec, host: inverter}\n"
    file.write_text(one + second)

    with pytest.raises(SettingError, match=r"agent\.yaml:13.*unit 1 at inverter:502.*ns/battery"):
        load(file, {})
