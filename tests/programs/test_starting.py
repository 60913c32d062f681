"""A wrong setting ends every program with one line and exit code 2, never a traceback."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DEROPS_")}
    return subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        env=clean | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "environment", "named"),
    [
        pytest.param(["derops-operator"], {}, "DEROPS_OPERATOR_", id="operator without settings"),
        pytest.param(["derops-headend", "gateway"], {}, "DEROPS_GATEWAY_", id="gateway without"),
        pytest.param(["derops-headend", "writer"], {}, "DEROPS_WRITER_", id="writer without"),
        pytest.param(["derops-headend", "api"], {}, "DEROPS_API_", id="API without"),
        pytest.param(
            ["derops-headend", "gateway"],
            {"DEROPS_GATEWAY_OPS_PORT": "many"},
            "DEROPS_GATEWAY_",
            id="gateway with a word for a port",
        ),
        pytest.param(
            ["derops-agent", "--config", "nowhere.yaml"],
            {},
            "nowhere.yaml",
            id="agent without file",
        ),
    ],
)
def test_a_wrong_setting_is_one_line_and_exit_code_2(
    command: list[str], environment: dict[str, str], named: str
) -> None:
    result = run(*command, **environment)

    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert named in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_an_unknown_key_in_the_agents_file_is_named(tmp_path: Path) -> None:
    config = tmp_path / "agent.yaml"
    config.write_text("gateways: ['127.0.0.1:1']\nserverCAFiel: x\n")

    result = run("derops-agent", "--config", str(config))

    assert result.returncode == 2
    assert "serverCAFiel" in result.stderr
    assert str(config) in result.stderr
