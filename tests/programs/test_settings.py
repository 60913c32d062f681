"""Each setting of each program, with a wrong value: one line that names it, and exit code 2."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from tests.programs import pods
from tests.programs.pods import Program
from tests.programs.test_bad_files import run, the_line

from derops.errors import SettingError
from derops.settings import ProgramSettings, load_settings
from derops_agent.settings import AgentSettings, load
from derops_headend.api.settings import ApiSettings
from derops_headend.gateway.settings import GatewaySettings
from derops_headend.programs.writer import WriterSettings
from derops_operator.settings import OperatorSettings

Make = Callable[[Path], Program]
Kind = type[ProgramSettings]

NOWHERE = "/proc/nowhere/at/all"
SHARED = {"ops_address": "", "ops_port": "65536", "log_level": "LOUD"}
AT_LOAD: dict[Kind, dict[str, str]] = {
    OperatorSettings: {
        **SHARED,
        "gateways": "derops-gateway",
        "control_tls_directory": NOWHERE,
        "server_ca_file": "",
        "trust_domain": "Not A Domain",
        "era": "-1",
        "gateway_server_name": "",
        "agent_issuer": "Not/A/Name",
        "cert_manager_user": "",
        "namespace": "Not/A/Name",
        "asset_grace_seconds": "soon",
        "resync_seconds": "0",
    },
    GatewaySettings: {
        **SHARED,
        "agent_listen": "8443",
        "agent_ca_file": "",
        "operator_certificate_file": "",
        "nats_credentials_file": "",
        "nats_ca_file": "",
        "control_listen": "0.0.0.0:https",
        "trust_domain": "Not A Domain",
        "replica": "",
        "heartbeat_seconds": "0",
        "max_agent_connections": "none",
        "event_log": "postgres",
        "log_shards": "0",
        "log_replicas": "6",
        "log_max_bytes": "1",
        "log_when_full": "explode",
    },
    WriterSettings: {
        **SHARED,
        "event_log": "postgres",
        "data_directory": "",
        "nats_credentials_file": "",
        "nats_ca_file": "",
        "shards": "first",
        "retention_days": "-1",
        "audit_retention_days": "30",
    },
    ApiSettings: {
        **SHARED,
        "listen": "0.0.0.0:65536",
        "trusted_proxies": "the proxy",
        "audit_max_bytes": "1",
        "audience": "two words",
        "static_tokens_directory": "",
        "replica": "a/b",
    },
}
"""What is wrong by itself."""

AT_START: dict[Make, dict[str, str]] = {
    pods.gateway: {
        "agent_tls_directory": NOWHERE,
        "control_tls_directory": NOWHERE,
        "data_directory": NOWHERE,
    },
    pods.writer: {"database_url": "https://example.org"},
    pods.api: {
        "database_url": "https://example.org",
        "tls_directory": NOWHERE,
        "data_directory": NOWHERE,
    },
}
"""What shows to be wrong once the program looks there."""

KINDS: dict[Make, Kind] = {
    pods.operator: OperatorSettings,
    pods.gateway: GatewaySettings,
    pods.writer: WriterSettings,
    pods.api: ApiSettings,
}


@pytest.mark.parametrize("make", KINDS, ids=lambda make: make.__name__)
def test_no_setting_is_left_out(make: Make) -> None:
    kind = KINDS[make]

    assert AT_LOAD[kind].keys() | AT_START.get(make, {}).keys() == kind.model_fields.keys()


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [(make, name, value) for make, kind in KINDS.items() for name, value in AT_LOAD[kind].items()],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_value_that_is_wrong_by_itself(
    make: Make,
    name: str,
    value: str,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for known, right in make(directory).settings.items():
        monkeypatch.setenv(known, right)
    load_settings(KINDS[make])
    setting = f"{KINDS[make].model_config['env_prefix']}{name.upper()}"
    monkeypatch.setenv(setting, value)

    with pytest.raises(SystemExit) as ended:
        load_settings(KINDS[make])

    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert line.startswith(f"cannot start: setting {setting} (environment): ")


@pytest.mark.parametrize(
    ("make", "name", "value"),
    [(make, name, value) for make, wrong in AT_START.items() for name, value in wrong.items()],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_value_that_leads_nowhere(make: Make, name: str, value: str, directory: Path) -> None:
    setting = f"{KINDS[make].model_config['env_prefix']}{name.upper()}"

    assert setting in the_line(run(make(directory), **{setting: value}))


AGENT = {
    "gateways": "derops-gateway",
    "serverName": "",
    "serverCAFile": "",
    "dataDirectory": "",
    "opsAddress": "",
    "opsPort": 65536,
    "logLevel": "LOUD",
    "maxClockOffsetMilliseconds": 0,
    "outboxMaxBytes": 1,
    "outboxMaxAgeSeconds": 0,
    "assets": [],
}


def test_no_key_of_the_agents_file_is_left_out() -> None:
    assert AGENT.keys() == {field.alias for field in AgentSettings.model_fields.values()}


@pytest.mark.parametrize(("key", "value"), AGENT.items(), ids=AGENT.keys())
def test_a_wrong_value_in_the_agents_file(key: str, value: object, directory: Path) -> None:
    program = pods.agent(directory)
    file = Path(program.command[-1])
    load(file, {})
    file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), key: value}))

    with pytest.raises(SettingError) as wrong:
        load(file, {})

    assert wrong.value.setting.split(".")[0] == key
    assert str(file) in str(wrong.value)
    assert len(str(wrong.value).splitlines()) == 1
