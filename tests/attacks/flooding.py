"""The gateway program under a flood: a process of its own, whose memory the kernel tells."""

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from cryptography import x509
from tests.headend.gateway.rig import Rig
from tests.pki import SERVER, TRUST_DOMAIN, Authority
from tests.stack.places import free_port

from derops.wire.v1 import agent_pb2, dispatch_pb2

PROGRAM = Path(sys.executable).parent / "derops-headend"
_START_SECONDS = 60


class FloodedGateway(Rig):
    """The rig's peers around the program instead of a gateway in this process."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.errors = directory / "stderr"
        self.ops_port = 0
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environment = self._environment()
        with self.errors.open("wb") as errors:
            self._process = await asyncio.create_subprocess_exec(
                str(PROGRAM), "gateway", env=environment, stderr=errors
            )
        started = await self._line("gateway.started")
        self.gateway: Any = SimpleNamespace(
            agent_port=started["agent_port"], control_port=started["control_port"]
        )

    async def stop(self) -> None:
        self.gateway = None
        await super().stop()
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    def resident_mebibytes(self) -> float:
        """Return what the program holds now."""
        return self._memory("VmRSS")

    def peak_mebibytes(self) -> float:
        """Return the most that the program held since it started."""
        return self._memory("VmHWM")

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        return sum(self.metrics(name).values())

    def metrics(self, name: str) -> dict[str, float]:
        """Return a metric by its labels, as the ops port tells it."""
        import urllib.request

        url = f"http://127.0.0.1:{self.ops_port}/metrics"
        with urllib.request.urlopen(url, timeout=30) as answer:
            text = answer.read().decode()
        found = re.findall(rf"^{name}({{.*}})? (\S+)$", text, re.MULTILINE)
        return {labels: float(value) for labels, value in found}

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        """Return what the program has logged under a name."""
        lines = self.errors.read_text(encoding="utf-8").splitlines()
        return [each for line in lines if (each := json.loads(line)).get("event") == event]

    def _memory(self, field: str) -> float:
        assert self._process is not None
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
        assert found is not None, status
        return int(found[1]) / 1024

    async def _line(self, event: str) -> dict[str, Any]:
        assert self._process is not None
        async with asyncio.timeout(_START_SECONDS):
            while not self.errors.read_bytes().endswith(b"\n") or not self.log_lines(event):
                assert self._process.returncode is None, self.errors.read_text()
                await asyncio.sleep(0.05)
        return self.log_lines(event)[0]

    def _environment(self) -> dict[str, str]:
        agent = self._port_files("agent", self.server_ca, "derops-gateway")
        control = self._port_files("control", self.control_ca, "derops-gateway-control")
        (agent / "clients.crt").write_bytes(self.agent_ca.pem)
        operator = self.directory / "operator.crt"
        operator.write_bytes(self.operator_leaf.pem)
        self.ops_port = free_port()
        facts = {
            "AGENT_LISTEN": "127.0.0.1:0",
            "AGENT_TLS_DIRECTORY": str(agent),
            "AGENT_CA_FILE": str(agent / "clients.crt"),
            "CONTROL_LISTEN": "127.0.0.1:0",
            "CONTROL_TLS_DIRECTORY": str(control),
            "OPERATOR_CERTIFICATE_FILE": str(operator),
            "DATA_DIRECTORY": str(self.directory / "data"),
            "TRUST_DOMAIN": TRUST_DOMAIN,
            "OPS_ADDRESS": "127.0.0.1",
            "OPS_PORT": str(self.ops_port),
        }
        clean = {key: value for key, value in os.environ.items() if not key.startswith("DEROPS_")}
        return clean | {f"DEROPS_GATEWAY_{key}": value for key, value in facts.items()}

    def _port_files(self, part: str, ca: Authority, name: str) -> Path:
        directory = self.directory / part
        directory.mkdir(exist_ok=True)
        leaf = ca.leaf([x509.DNSName(name)], usages=SERVER)
        (directory / "tls.crt").write_bytes(leaf.pem)
        (directory / "tls.key").write_bytes(leaf.key)
        (directory / "ca.crt").write_bytes(ca.pem)
        return directory


def great_report(uid: str, sequence: int, ledger_id: str = "ledger-1") -> agent_pb2.AgentMessage:
    """Return a report of 60 KiB that breaks no rule of its fields."""
    step = dispatch_pb2.Transition(phase="Acked", reason="Accepted", message="x" * 1000)
    report = dispatch_pb2.DispatchReport(
        sequence=sequence,
        ledger_id=ledger_id,
        dispatch_uid=uid,
        phase="Acked",
        reason="Accepted",
        transitions=[step] * 59,
    )
    return agent_pb2.AgentMessage(report=report)
