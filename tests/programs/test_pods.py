"""Every program runs as in a pod: an unknown user, a read-only root, no environment."""

import pwd
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.programs import pods
from tests.programs.pods import BIN, PROGRAMS, Program, enter, started
from tests.stack import ops


def test_the_pod_of_these_tests_is_one(directory: Path) -> None:
    (directory / "elsewhere").mkdir(mode=0o777)
    with pytest.raises(KeyError):
        pwd.getpwuid(pods.UID)
    look = (
        "env; id -u; grep CapEff /proc/self/status; for place in / /var/tmp /dev/shm /tmp $0; do "
        "touch $place/derops-written 2>/dev/null && echo $place; rm -f $place/derops-written; done"
    )
    data = directory / "data"

    told = subprocess.run(
        enter(data, ["sh", "-c", look, str(data)], {"ONLY": "this"}),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()

    rights = 1 << 2  # to read, and to enter directories
    shell_adds = [line for line in told if line.startswith("PWD=")]
    assert [line for line in told if line not in shell_adds] == [
        "ONLY=this",
        str(pods.UID),
        f"CapEff:\t{rights:016x}",
        "/tmp",
        str(data),
    ]


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: str(make.__name__))
async def test_it_runs_and_ends(make: Callable[[Path], Program], directory: Path) -> None:
    program = make(directory)

    with started(program, directory) as running:
        await pods.until(
            lambda: running.process.poll() is not None or program.says in running.said()
        )
        livez = ops.ask(program.ops_port, "livez")

    assert livez == (200, "ok\n"), running.said()
    assert running.process.returncode == 0, running.said()
    assert "Traceback" not in running.said()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        pytest.param(pods.operator, "DEROPS_OPERATOR_", id="operator"),
        pytest.param(pods.gateway, "DEROPS_GATEWAY_", id="gateway"),
        pytest.param(pods.writer, "DEROPS_WRITER_", id="writer"),
        pytest.param(pods.api, "DEROPS_API_", id="api"),
        pytest.param(pods.agent, "serverCAFile", id="agent"),
    ],
)
def test_without_settings_it_says_which_one_is_missing(
    make: Callable[[Path], Program], named: str, directory: Path
) -> None:
    program = make(directory)
    if program.command[0] == "derops-agent":
        (directory / "agent.yaml").write_text("gateways: ['127.0.0.1:1']\n")

    result = subprocess.run(
        enter(directory / "data", [str(BIN / program.command[0]), *program.command[1:]], {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"cannot start: setting {named}")
    assert "required and not set" in line
