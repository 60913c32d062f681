"""Operator and gateway on the real stack: renewals by cert-manager, and a poisoned fleet."""

import json
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest
from tests.e2e.acting import Pilot
from tests.stack import ops
from tests.stack.identities import OPERATOR_SECRET
from tests.stack.stack import Stack
from tests.waiting import eventually

TEN_YEARS_MS = 10 * 365 * 86400 * 1000
RUNNING_SECONDS = 1800


@contextmanager
def watching(stack: Stack) -> Iterator[list[tuple[int, str]]]:
    """Collect what the operator's /readyz says meanwhile."""
    seen: list[tuple[int, str]] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            seen.append(ops.ask(stack.ops_ports["operator"]))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def renew_operators_certificate(stack: Stack) -> None:
    """Ask cert-manager for a new certificate, as `cmctl renew` does."""
    namespace, name = OPERATOR_SECRET[0], "derops-operator"
    text = stack.kubectl("get", "certificate", name, "-n", namespace, "-o", "json")
    certificate = json.loads(text)
    certificate["status"]["conditions"].append(
        {"type": "Issuing", "status": "True", "reason": "ManuallyTriggered", "message": "a test"}
    )
    stack.kubectl("replace", "--subresource=status", "-f", "-", stdin=json.dumps(certificate))


def test_a_renewed_certificate_of_the_operator_interrupts_nothing(pilot: Pilot) -> None:
    stack = pilot.stack
    pilot.battery()
    pilot.dispatch("through", durationSeconds=20)
    pilot.wait_for_phase("through", "Active")
    before = stack.identities.operator_certificate.read_bytes()

    with watching(stack) as seen:
        renew_operators_certificate(stack)
        log = stack.parts["operator"].log_file
        eventually(lambda: '"certificate.renewed"' in log.read_text(), "the operator's new stream")
        pilot.dispatch("after", setpoint={"mode": "LoadLimit", "maxLoadWatts": 1000})
        pilot.wait_for_phase("after", "Complete")

    assert stack.identities.operator_certificate.read_bytes() != before
    assert [status for status, _ in seen if status != 200] == []
    assert ops.metric(stack.ops_ports["gateway"], "derops_gateway_operator_connected") == 1
    assert pilot.wait_for_phase("through", "Complete")["execution"]["interruptions"] == 0


def change(file: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        assert database.execute(statement, values).rowcount == 1


def poison(pilot: Pilot, *names: str) -> None:
    """Leave gateway and agents as earlier versions did that had heard of a start from the future.

    The agents' is a later one than the gateway's: they do not take its state, either.
    """
    stack = pilot.stack
    stack.kill("operator")
    stack.kill("gateway")
    for name in names:
        stack.kill_agent(pilot.namespace, name)
    start_ms = time.time_ns() // 10**6 + TEN_YEARS_MS
    meta = "UPDATE meta SET value = ? WHERE key = 'operator_start_ms'"
    change(stack.data_directory / "headend" / "desired.db", meta, start_ms)
    for name in names:
        folder = stack.data_directory / "agents" / f"{pilot.namespace}_{name}"
        (ledger,) = folder.rglob("ledger.db")
        change(ledger, "UPDATE meta SET revision_start_ms = ?", start_ms + 1)
    for name in names:
        stack.restart_agent(pilot.namespace, name)
    stack.restart("gateway")
    stack.parts["operator"].start()


@pytest.mark.timeout(600)
def test_a_poisoned_fleet_comes_back_with_a_higher_era_and_keeps_what_it_runs(
    pilot: Pilot,
) -> None:
    stack, names = pilot.stack, ("north", "south")
    for name in names:
        pilot.battery(name)
        pilot.dispatch(f"through-{name}", asset=name, durationSeconds=RUNNING_SECONDS)
    for name in names:
        pilot.wait_for_phase(f"through-{name}", "Active")

    poison(pilot, *names)
    eventually(
        lambda: "begin a new era" in ops.ask(stack.ops_ports["operator"])[1], "the operator's word"
    )
    assert "degraded operator clock" in ops.ask(stack.ops_ports["gateway"])[1]
    for name in names:
        port = stack.fleet.get(pilot.namespace, name).ops_port
        refusals = partial(
            ops.metric, port, 'derops_agent_stream_ends_total{reason="StaleReplica"}'
        )
        eventually(refusals, f"{name} to refuse the gateway")

    operator = stack.parts["operator"]
    operator.environment["DEROPS_OPERATOR_ERA"] = str(time.time_ns() // 10**9)
    operator.terminate()
    stack.restart("operator")

    assert ops.ask(stack.ops_ports["operator"]) == (200, "ok\n")
    assert "operator clock" not in ops.ask(stack.ops_ports["gateway"])[1]
    limit = {"mode": "LoadLimit", "maxLoadWatts": 1000}
    for name in names:  # whose next attempt may be half a minute away
        pilot.dispatch(
            f"after-{name}",
            asset=name,
            setpoint=limit,
            startDeadlineSeconds=300,
            latePolicy="KeepDuration",
        )
    for name in names:
        pilot.wait_for_phase(f"after-{name}", "Active", "Complete", patience_seconds=120)
        assert pilot.status(f"through-{name}")["phase"] == "Active"
        assert pilot.powers_written(name) == [5000]
    for name in names:  # and obeys
        pilot.cancel(f"through-{name}")
        pilot.wait_for_phase(f"through-{name}", "Cancelled")
        assert pilot.powers_written(name) == [5000, 0]
