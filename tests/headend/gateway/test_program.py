"""The program itself: it starts, serves, and ends on SIGTERM within 5 s."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from cryptography import x509
from tests.pki import SERVER, TRUST_DOMAIN, Authority

PROGRAM = Path(sys.executable).parent / "derops-headend"


def write_port_files(directory: Path, name: str) -> Path:
    directory.mkdir()
    ca = Authority(name)
    leaf = ca.leaf([x509.DNSName(name)], usages=SERVER)
    (directory / "tls.crt").write_bytes(leaf.pem)
    (directory / "tls.key").write_bytes(leaf.key)
    (directory / "ca.crt").write_bytes(ca.pem)
    return directory


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def environment(tmp_path: Path) -> dict[str, str]:
    agent = write_port_files(tmp_path / "agent", "derops-gateway")
    control = write_port_files(tmp_path / "control", "derops-gateway-control")
    facts = {
        "AGENT_LISTEN": "127.0.0.1:0",
        "AGENT_TLS_DIRECTORY": str(agent),
        "AGENT_CA_FILE": str(agent / "ca.crt"),
        "CONTROL_LISTEN": "127.0.0.1:0",
        "CONTROL_TLS_DIRECTORY": str(control),
        "OPERATOR_CERTIFICATE_FILE": str(tmp_path / "operator" / "tls.crt"),
        "DATA_DIRECTORY": str(tmp_path / "data"),
        "TRUST_DOMAIN": TRUST_DOMAIN,
        "OPS_ADDRESS": "127.0.0.1",
        "OPS_PORT": free_port(),
    }
    clean = {key: value for key, value in os.environ.items() if not key.startswith("DEROPS_")}
    return clean | {f"DEROPS_GATEWAY_{key}": value for key, value in facts.items()}


def readiness(port: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


async def test_no_full_collection_looks_at_what_stays(tmp_path: Path) -> None:
    count = "import atexit, gc; atexit.register(lambda: print(gc.get_freeze_count()))"
    run = "from derops_headend.main import main; main()"
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        f"{count}; {run}",
        "gateway",
        env=environment(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"gateway.started" not in await process.stderr.readline():
            assert process.returncode is None

    process.send_signal(signal.SIGTERM)
    told, _ = await process.communicate()

    assert int(told.split()[-1]) > 10_000


async def test_it_serves_and_ends_on_sigterm(tmp_path: Path) -> None:
    facts = environment(tmp_path)
    process = await asyncio.create_subprocess_exec(
        str(PROGRAM), "gateway", env=facts, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    async with asyncio.timeout(60):
        while b"gateway.started" not in await process.stderr.readline():
            assert process.returncode is None
    async with asyncio.timeout(30):
        status, text = await asyncio.to_thread(readiness, facts["DEROPS_GATEWAY_OPS_PORT"])

    begun = time.monotonic()
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(60):
        code = await process.wait()

    assert status == 503
    assert "operator snapshot" in text
    assert "degraded operator certificate: no operator is admitted" in text
    assert code == 0
    assert time.monotonic() - begun < 20, "a pod gets 30 s"


def test_a_missing_certificate_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    facts = environment(tmp_path)
    (tmp_path / "agent" / "tls.key").unlink()

    result = subprocess.run(
        [str(PROGRAM), "gateway"],
        env=facts,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert result.returncode == 2
    assert len(result.stderr.strip().splitlines()) == 1
    assert "DEROPS_GATEWAY_AGENT_TLS_DIRECTORY" in result.stderr
