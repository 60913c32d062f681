"""The agent's file: what is wrong is named with file, key and what is allowed."""

from pathlib import Path

import pytest

from derops.errors import SettingError
from derops_agent.settings import load

GOOD = """
gateways: ["gateway:8443"]
serverCAFile: ca.crt
dataDirectory: data
assets:
  - namespace: ns
    name: battery
    certificateDirectory: certs
    driver: {kind: simulated, model: load, maxAbsorptionWatts: 5}
"""


def test_a_good_file(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(GOOD)

    settings = load(file, {"DEROPS_AGENT_LOG_LEVEL": "DEBUG", "DEROPS_AGENT_GATEWAYS": "a:1,b:2"})

    assert settings.log_level == "DEBUG"
    assert settings.gateways == ["a:1", "b:2"]
    assert settings.assets[0].driver.options() == {
        "kind": "simulated",
        "model": "load",
        "maxAbsorptionWatts": 5,
    }


@pytest.mark.parametrize(
    ("change", "environment", "named"),
    [
        (("serverCAFile", "serverCAFiel"), {}, ["serverCAFiel", "serverCAFile"]),
        (("kind: simulated", "kind: magic"), {}, ["driver.kind", "simulated", "magic"]),
        (("name: battery", "name: Battery"), {}, ["assets.0.name"]),
        (("gateway:8443", "gateway"), {}, ["gateways", "host:port"]),
        (("dataDirectory: data", ""), {}, ["dataDirectory", "required"]),
        (("", ""), {"DEROPS_AGENT_OPS_PORT": "many"}, ["DEROPS_AGENT_OPS_PORT", "many"]),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, change: tuple[str, str], environment: dict[str, str], named: list[str]
) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(GOOD.replace(*change) if change[0] else GOOD)

    with pytest.raises(SettingError) as raised:
        load(file, environment)

    for word in named:
        assert word in str(raised.value)
    assert environment or str(file) in str(raised.value)


def test_a_wrong_option_of_a_driver_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    file.write_text(GOOD.replace("{kind: simulated,", "{kind: simulated, speeed: 2,"))

    with pytest.raises(SettingError, match=r"assets\.0\.driver\.speeed \(.*agent\.yaml:9\)"):
        load(file, {})


def test_two_assets_cannot_have_one_device(tmp_path: Path) -> None:
    file = tmp_path / "agent.yaml"
    unit = "driver: {kind: sunspec, host: inverter, unitId: 3}"
    one = GOOD.replace("driver: {kind: simulated, model: load, maxAbsorptionWatts: 5}", unit)
    second = one[one.index("  - namespace") :].replace("name: battery", "name: other")
    file.write_text(one + second)

    with pytest.raises(SettingError, match=r"agent\.yaml:13.*unit 3 at inverter:502.*ns/battery"):
        load(file, {})


@pytest.mark.parametrize(("host", "same"), [("127.0.0.1", True), ("no-such-host.invalid", False)])
def test_two_names_of_one_host_are_one_device(tmp_path: Path, host: str, same: bool) -> None:
    file = tmp_path / "agent.yaml"
    unit = "driver: {kind: sunspec, host: localhost, unitId: 3}"
    one = GOOD.replace("driver: {kind: simulated, model: load, maxAbsorptionWatts: 5}", unit)
    second = one[one.index("  - namespace") :].replace("name: battery", "name: other")
    file.write_text(one + second.replace("localhost", host))

    if not same:
        load(file, {})
        return
    with pytest.raises(SettingError, match=rf"agent\.yaml:13.*unit 3 at {host}:502.*ns/battery"):
        load(file, {})
