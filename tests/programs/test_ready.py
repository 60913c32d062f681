"""``images/ready`` says in a probe's words what /readyz says, and never keeps a probe waiting."""

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from tests.stack.places import REPOSITORY, free_port

from derops.observability import OpsServer, Readiness

READY = REPOSITORY / "images" / "ready"
PATIENCE_SECONDS = 2.0


def ask(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run it as a kubelet does: with nothing in its environment but a PATH."""
    return subprocess.run(
        [READY, *map(str, arguments)],
        env={"PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


@pytest.fixture
def readiness() -> Readiness:
    return Readiness()


@pytest.fixture
def port(readiness: Readiness) -> Iterator[int]:
    ops = OpsServer("127.0.0.1", 0, readiness)
    ops.start()
    yield ops.port
    ops.stop()


@contextmanager
def server(*says: bytes, hang: bool = False) -> Iterator[int]:
    """Take one connection, say something whatever is asked, and close it or not."""
    done = threading.Event()

    def serve() -> None:  # whoever asked may have heard enough
        connection, _ = listening.accept()
        with connection, suppress(ConnectionError):
            for part in says:
                connection.sendall(part)
            connection.recv(1024)
            if hang:
                done.wait()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            done.set()
            thread.join()


def test_who_is_ready_is_0_and_says_with_what(readiness: Readiness, port: int) -> None:
    readiness.found("database", "PostgreSQL 17")

    result = ask(port)

    assert (result.returncode, result.stdout) == (0, "ok\ndatabase: PostgreSQL 17\n")
    assert result.stderr == ""


def test_who_waits_is_1_and_says_for_what_in_the_first_words(
    readiness: Readiness, port: int
) -> None:
    readiness.found("event log", "followed")
    readiness.waiting("database", "role “derops_writer” does not exist")

    result = ask(port)

    assert result.returncode == 1
    assert result.stdout.startswith("waiting for database: role “derops_writer” does not exist\n")
    assert "event log: followed" in result.stdout


def test_nobody_there_is_said() -> None:
    result = ask(port := free_port())

    assert result.returncode == 1
    assert result.stdout == f"nobody listens on port {port}: the program starts, or has ended\n"


@pytest.mark.parametrize(
    ("says", "told"),
    [
        pytest.param([b"SSH-2.0-OpenSSH\r\n\r\n"], "does not speak HTTP", id="another protocol"),
        pytest.param([b"\x15\x03\x03\x00\x02\x02\x32"], "does not speak HTTP", id="TLS"),
        pytest.param([], "does not speak HTTP", id="nothing"),
        pytest.param([b"HTTP/1.1 200"], "does not speak HTTP", id="half a head"),
        pytest.param([b"HTTP/1.0 404 Not Found\r\n\r\n"], "HTTP status 404", id="no body"),
        pytest.param([b"HTTP/1.0 503 S\r\n\r\n\xff\xfe"], "\ufffd\ufffd", id="no text"),
        pytest.param([b"HTTP/1.0 503 S\r\n\r\n", b"x" * 4_000_000], "x" * 1000, id="no end"),
    ],
)
def test_whoever_else_answers_is_not_ready(says: list[bytes], told: str) -> None:
    with server(*says) as port:
        result = ask(port)

    assert result.returncode == 1
    assert told in result.stdout
    assert len(result.stdout) < 20_000
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "says",
    [
        pytest.param([], id="nothing"),
        pytest.param([b"HTTP/1.0 200 OK\r\n\r\nok"], id="an end"),
    ],
)
def test_a_program_that_hangs_is_not_waited_for(says: list[bytes]) -> None:
    # A busy machine adds to one try or another; what it waits itself is part of each.
    assert any(_seconds_at_one_that_hangs(says) < PATIENCE_SECONDS for _ in range(10))


def _seconds_at_one_that_hangs(says: list[bytes]) -> float:
    with server(*says, hang=True) as port:
        begun = time.monotonic()
        result = ask(port)
        took = time.monotonic() - begun

    assert result.returncode == 1
    assert "does not answer within 1.0 s" in result.stdout
    return took


@pytest.mark.parametrize("arguments", [[], ["x"], ["0"], ["70000"], ["1", "2"]], ids=str)
def test_wrong_arguments_are_2_with_usage(arguments: list[str]) -> None:
    result = ask(*arguments)

    assert (result.returncode, result.stderr) == (2, "usage: ready PORT\n")
