"""Our programs as a cluster starts them: an unknown user, nothing to write on, no environment."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import waiting
from tests.pki import TRUST_DOMAIN, Authority, write_identity
from tests.stack import kubeconfig
from tests.stack.places import free_port

BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 90.0
UID = 65532
"""As in our images; no machine has it in /etc/passwd, see the test of that."""

_ENTER = """
set -e
mount --bind /tmp /tmp
mount --bind "$1" "$1"
mount -o remount,bind,ro /
mount -o remount,bind,ro /dev/shm
shift
exec setpriv --reuid "$1" --regid "$1" --clear-groups --no-new-privs \
    --bounding-set -all,+dac_read_search --inh-caps -all,+dac_read_search \
    --ambient-caps -all,+dac_read_search env --ignore-environment -- "${@:2}"
"""
"""The one right that is left lets it read: a developer's Python may lie in a closed home."""


async def until(look: Callable[[], object]) -> None:
    """Look until there is something to see: programs take their time where many start at once."""
    await waiting.until(look, PATIENCE_SECONDS)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How one of our programs is started, with what it cannot do without."""

    command: tuple[str, ...]
    settings: Mapping[str, str]
    ops_port: int
    says: str
    """In its log, once it has come as far as it comes alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A program that was started."""

    process: subprocess.Popen[bytes]
    log: Path

    def said(self) -> str:
        """Return its log so far."""
        return self.log.read_text(encoding="utf-8")


def enter(data: Path, command: list[str], settings: Mapping[str, str]) -> list[str]:
    """Return a command that runs another with a directory to write in, and its settings alone."""
    if os.getuid() != 0:
        pytest.skip("only root can start a program as somebody else with a read-only root")
    os.chown(data, UID, UID)
    variables = [f"{name}={value}" for name, value in settings.items()]
    inner = [str(data), str(UID), *variables, *command]
    return ["unshare", "--mount", "bash", "-c", _ENTER, "enter", *inner]


@contextmanager
def started(program: Program, directory: Path) -> Iterator[Running]:
    """Start a program in a directory that has its ``data``, and end it."""
    log = directory / "log"
    command = [str(BIN / program.command[0]), *program.command[1:]]
    with log.open("wb") as stderr:
        process = subprocess.Popen(
            enter(directory / "data", command, program.settings),
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
    try:
        yield Running(process=process, log=log)
    finally:
        process.terminate()
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()


def operator(directory: Path) -> Program:
    """Return the operator, without an API server."""
    ops_port, tls = free_port(), _tls(directory)
    return Program(
        command=("derops-operator",),
        settings={
            "KUBECONFIG": _nowhere(directory),
            "DEROPS_OPERATOR_GATEWAYS": f"127.0.0.1:{free_port()}",
            "DEROPS_OPERATOR_CONTROL_TLS_DIRECTORY": str(tls),
            "DEROPS_OPERATOR_SERVER_CA_FILE": str(tls / "ca.crt"),
            "DEROPS_OPERATOR_TRUST_DOMAIN": TRUST_DOMAIN,
            "DEROPS_OPERATOR_OPS_PORT": str(ops_port),
        },
        ops_port=ops_port,
        says="listing failed",
    )


def gateway(directory: Path) -> Program:
    """Return a gateway, without an operator."""
    ops_port, tls = free_port(), _tls(directory)
    return Program(
        command=("derops-headend", "gateway"),
        settings={
            "DEROPS_GATEWAY_AGENT_LISTEN": f"127.0.0.1:{free_port()}",
            "DEROPS_GATEWAY_AGENT_TLS_DIRECTORY": str(tls),
            "DEROPS_GATEWAY_AGENT_CA_FILE": str(tls / "ca.crt"),
            "DEROPS_GATEWAY_CONTROL_LISTEN": f"127.0.0.1:{free_port()}",
            "DEROPS_GATEWAY_CONTROL_TLS_DIRECTORY": str(tls),
            "DEROPS_GATEWAY_OPERATOR_CERTIFICATE_FILE": str(tls / "tls.crt"),
            "DEROPS_GATEWAY_DATA_DIRECTORY": str(directory / "data"),
            "DEROPS_GATEWAY_TRUST_DOMAIN": TRUST_DOMAIN,
            "DEROPS_GATEWAY_OPS_PORT": str(ops_port),
        },
        ops_port=ops_port,
        says="gateway.started",
    )


def writer(directory: Path) -> Program:
    """Return a writer, without a database."""
    ops_port = free_port()
    return Program(
        command=("derops-headend", "writer"),
        settings={
            "DEROPS_WRITER_DATABASE_URL": f"postgresql://w@127.0.0.1:{free_port()}/derops",
            "DEROPS_WRITER_DATA_DIRECTORY": str(directory / "data"),
            "DEROPS_WRITER_OPS_PORT": str(ops_port),
        },
        ops_port=ops_port,
        says="dependency.missing",
    )


def api(directory: Path) -> Program:
    """Return an API, without an API server of Kubernetes and without a database."""
    ops_port = free_port()
    return Program(
        command=("derops-headend", "api"),
        settings={
            "KUBECONFIG": _nowhere(directory),
            "DEROPS_API_LISTEN": f"127.0.0.1:{free_port()}",
            "DEROPS_API_TLS_DIRECTORY": str(_tls(directory)),
            "DEROPS_API_DATABASE_URL": f"postgresql://a@127.0.0.1:{free_port()}/derops",
            "DEROPS_API_DATA_DIRECTORY": str(directory / "data"),
            "DEROPS_API_OPS_PORT": str(ops_port),
        },
        ops_port=ops_port,
        says="api.started",
    )


def agent(directory: Path) -> Program:
    """Return an agent of a simulated device, without a gateway."""
    ops_port, tls = free_port(), _tls(directory)
    config = directory / "agent.yaml"
    config.write_text(
        f"gateways: ['127.0.0.1:{free_port()}']\n"
        f"serverCAFile: {tls / 'ca.crt'}\n"
        f"dataDirectory: {directory / 'data'}\n"
        f"opsPort: {ops_port}\n"
        "assets:\n"
        "  - namespace: pilot\n"
        "    name: battery\n"
        f"    certificateDirectory: {tls}\n"
        "    driver: {kind: simulated, model: load, maxAbsorptionWatts: 5000}\n"
    )
    return Program(
        command=("derops-agent", "--config", str(config)),
        settings={},
        ops_port=ops_port,
        says="stream.ended",
    )


PROGRAMS = [operator, gateway, writer, api, agent]


def _nowhere(directory: Path) -> str:
    """Return a kubeconfig of a cluster that does not answer."""
    server, authority = f"https://127.0.0.1:{free_port()}", Authority("cluster").pem
    return kubeconfig.write(directory / "kubeconfig", server, authority, {"token": "x"})


def _tls(directory: Path) -> Path:
    tls = directory / "tls"
    tls.mkdir()
    return write_identity(tls)
