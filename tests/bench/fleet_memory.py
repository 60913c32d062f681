"""Memory of operator and gateway while many agents are connected, from one process of agents."""

import re
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from tests.bench.results import Result
from tests.e2e.acting import Pilot, battery_manifest
from tests.stack.stack import Stack
from tests.waiting import eventually

AGENTS = 500
PROMISED_MEBIBYTES = 150.0

_BATCH = 100
"""Assets in one kubectl apply."""

_PATIENCE_SECONDS = 480
"""Certificates come one by one from cert-manager, with a key each."""


def measure(stack: Stack) -> Iterator[Result]:
    """Connect five hundred batteries and read the resident memory of what serves them."""
    pilot = Pilot(stack, "bench-fleet")
    pilot.create_namespace()
    before = {part: _resident_mebibytes(stack.parts[part].pid) for part in ("operator", "gateway")}
    names = [f"battery-{number}" for number in range(AGENTS)]
    started = time.monotonic()
    for first in range(0, AGENTS, _BATCH):
        pilot.apply_all(
            [battery_manifest(name, with_agent=False) for name in names[first : first + _BATCH]]
        )
    host = stack.fleet.host([(pilot.namespace, name) for name in names], "fleet")
    eventually(lambda: _connected(stack) >= AGENTS, f"{AGENTS} agents connected", _PATIENCE_SECONDS)
    yield Result(
        name="agents_connected_after",
        value=time.monotonic() - started,
        unit="s",
        limit=float(_PATIENCE_SECONDS),
    )
    for part, idle in before.items():
        yield Result(
            name=f"{part}_resident_at_{AGENTS}_agents",
            value=_resident_mebibytes(stack.parts[part].pid),
            unit="MiB",
            limit=PROMISED_MEBIBYTES,
        )
        yield Result(
            name=f"{part}_resident_before", value=idle, unit="MiB", limit=PROMISED_MEBIBYTES
        )
    host.process.terminate()


def _connected(stack: Stack) -> float:
    with urllib.request.urlopen(stack.describe()["metrics"]["gateway"], timeout=5) as answer:
        text: str = answer.read().decode()
    found = re.search(r"^derops_gateway_connected_agents (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def _resident_mebibytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"^VmRSS:\s+(\d+) kB$", status, re.MULTILINE)
    assert found is not None, f"no VmRSS of process {pid}"
    return int(found[1]) / 1024
