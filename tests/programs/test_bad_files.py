"""What a program cannot start with ends it in one line; what may still come is waited for."""

import dataclasses
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from tests.pki import Authority
from tests.programs import pods
from tests.programs.pods import BIN, PROGRAMS, Program, started
from tests.stack import ops

from derops.observability import OpsServer, Readiness

Make = Callable[[Path], Program]


def run(program: Program, **settings: str) -> subprocess.CompletedProcess[str]:
    known = {**program.settings, **settings}
    return subprocess.run(
        [BIN / program.command[0], *program.command[1:]],
        env={name: value for name, value in known.items() if value},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def the_line(result: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that a program ends with where it cannot start."""
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("cannot start: setting ")
    return line


def spoil(directory: Path, how: str) -> None:
    certificate, key = directory / "tls" / "tls.crt", directory / "tls" / "tls.key"
    if how == "other key":
        key.write_bytes(Authority("another").agent("battery").key)
        return
    certificate.unlink()
    if how == "folder":
        certificate.mkdir()
    elif how != "gone":
        certificate.write_bytes({"empty": b"", "text": b"to be filled\n"}[how])


SPOILT = [
    ("gone", "tls.crt"),
    ("empty", "tls.crt is empty"),
    ("text", "tls.crt"),
    ("folder", "tls.crt"),
    ("other key", "is not the key of"),
]


@pytest.mark.parametrize(("how", "says"), SPOILT, ids=lambda value: value)
@pytest.mark.parametrize("make", [pods.operator, pods.gateway], ids=lambda make: make.__name__)
def test_a_bad_certificate_ends_it(make: Make, how: str, says: str, directory: Path) -> None:
    program = make(directory)
    spoil(directory, how)

    line = the_line(run(program))

    assert "TLS_DIRECTORY" in line
    assert says in line
    assert str(directory) in line


@pytest.mark.parametrize(("how", "says"), SPOILT, ids=lambda value: value)
async def test_an_agent_waits_for_a_good_certificate(how: str, says: str, directory: Path) -> None:
    program = pods.agent(directory)
    spoil(directory, how)

    with started(program, directory) as running:
        await pods.until(
            lambda: (
                running.process.poll() is not None
                or ops.ask(program.ops_port)[1].startswith("waiting for certificate of ")
            )
        )
        _, text = ops.ask(program.ops_port)
        lines = running.said().splitlines()

    assert running.process.returncode == 0, running.said()
    assert text.startswith("waiting for certificate of pilot/battery: ")
    assert says in text.splitlines()[0]
    assert len([line for line in lines if "dependency.missing" in line]) == 1


@pytest.mark.parametrize("make", PROGRAMS, ids=lambda make: str(make.__name__))
def test_an_ops_port_that_is_taken_ends_it(make: Make, directory: Path) -> None:
    program = make(directory)
    other = OpsServer("0.0.0.0", program.ops_port, Readiness())
    other.start()
    try:
        line = the_line(run(program))
    finally:
        other.stop()

    assert "OPS_PORT" in line or "opsPort" in line
    assert "Address already in use" in line


@pytest.mark.parametrize(
    ("content", "says"),
    [
        pytest.param(None, "is not set, and this is no pod with a service account", id="unset"),
        pytest.param("", "is of no use", id="empty"),
        pytest.param("a: [", "is of no use", id="not YAML"),
        pytest.param("kind: Config", "is of no use", id="nothing in it"),
        pytest.param("gone", "there is no file", id="gone"),
    ],
)
def test_no_way_to_kubernetes_ends_the_operator(
    content: str | None, says: str, directory: Path
) -> None:
    program = pods.operator(directory)
    file = directory / "kubeconfig"
    if content == "gone":
        file.unlink()
    elif content is not None:
        file.write_text(content)

    line = the_line(run(program, KUBECONFIG="" if content is None else str(file)))

    assert line.startswith("cannot start: setting KUBECONFIG ")
    assert says in line


@pytest.mark.parametrize("url", [" ", "\n", "not a url", "mysql://a@b/c"])
def test_what_is_no_url_of_a_database_ends_the_writer_and_is_not_shown(
    url: str, directory: Path
) -> None:
    line = the_line(run(pods.writer(directory), DEROPS_WRITER_DATABASE_URL=url))

    assert "DEROPS_WRITER_DATABASE_URL" in line
    assert "mysql" not in line


def test_the_end_of_a_secrets_line_is_not_part_of_the_url(directory: Path) -> None:
    url = "postgresql://derops_writer@127.0.0.1:1/derops\n"

    result = subprocess.run(
        [BIN / "derops-headend", "database", "roles", "--check"],
        env={"DEROPS_WRITER_DATABASE_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.stdout.startswith('missing: connection to server at "127.0.0.1", port 1 failed')


@pytest.mark.parametrize("level", ["LOUD", "debug "])
@pytest.mark.parametrize(
    ("make", "prefix"),
    [
        pytest.param(pods.operator, "OPERATOR", id="operator"),
        pytest.param(pods.gateway, "GATEWAY", id="gateway"),
        pytest.param(pods.writer, "WRITER", id="writer"),
    ],
)
def test_an_unknown_log_level_ends_it(make: Make, prefix: str, level: str, directory: Path) -> None:
    name = f"DEROPS_{prefix}_LOG_LEVEL"

    assert name in the_line(run(make(directory), **{name: level}))


def test_a_data_directory_that_is_a_file_ends_the_gateway(directory: Path) -> None:
    program = pods.gateway(directory)
    (directory / "file").touch()

    line = the_line(run(program, DEROPS_GATEWAY_DATA_DIRECTORY=str(directory / "file")))

    assert "DEROPS_GATEWAY_DATA_DIRECTORY" in line


async def test_a_data_directory_that_is_read_only_is_said(directory: Path) -> None:
    """As where a volume was not mounted, and the root of the pod is in its place."""
    program = pods.gateway(directory)
    settings = {**program.settings, "DEROPS_GATEWAY_DATA_DIRECTORY": str(directory / "none")}

    with started(dataclasses.replace(program, settings=settings), directory) as running:
        await pods.until(lambda: running.process.poll() is not None)

    assert running.process.returncode == 2
    (line,) = running.said().splitlines()
    assert line.startswith("cannot start: setting DEROPS_GATEWAY_DATA_DIRECTORY (environment): ")


def gateway_of_newer(directory: Path) -> Program:
    return write_newer(pods.gateway(directory), directory / "data" / "desired.db")


def agent_of_newer(directory: Path) -> Program:
    program = pods.agent(directory)
    return write_newer(program, directory / "data" / "pilot_battery" / "ledger.db")


def outbox_of_newer(directory: Path) -> Program:
    return write_newer(pods.agent(directory), directory / "data" / "outbox.db")


def api_of_newer(directory: Path) -> Program:
    program = pods.api(directory)
    (directory / "data").mkdir(exist_ok=True)
    segment = directory / "data" / "audit-000000000001.log"
    segment.write_text('{"chain":"api-0/x","seq":0,"hash":"0","readable_from":99}\n')
    return program


def write_newer(program: Program, file: Path) -> Program:
    """Leave a file that is for newer programs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA user_version = 99")
    return program


@pytest.mark.parametrize(
    "make", [gateway_of_newer, agent_of_newer, outbox_of_newer, api_of_newer],
    ids=["desired state", "ledger", "outbox", "audit"],
)  # fmt: skip
def test_a_store_for_newer_programs_ends_it_in_one_line(make: Make, directory: Path) -> None:
    result = run(make(directory))

    assert result.returncode == 2, result.stderr
    (line,) = (each for each in result.stderr.splitlines() if each.startswith("cannot start: "))
    assert "can be used by programs of schema version 99 or newer" in line
    assert "Traceback" not in result.stderr
