"""Ways to break the stack: each breaks at the start of a block and mends at its end."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.e2e import failing_database
from tests.e2e.acting import Pilot, battery_manifest, conditions
from tests.e2e.modbus import controlled, profiled_bus
from tests.e2e.test_stolen_key import NAME, Thief
from tests.faults.ground import failing_syncs
from tests.headend.eventlog.engines import alter
from tests.headend.writing.making import T0_US, telemetry
from tests.stack.calling import calling
from tests.stack.chart import NAMESPACE
from tests.stack.postgres import API
from tests.waiting import eventually

from derops_headend.eventlog.sqlite import SqliteEventLog

_SMALL_LOG = 1024**2
_BALLAST = 8000
"""Samples in an entry that makes the log full."""

ASSETS = tuple(f"battery-{number}" for number in range(4))


def killed(part: str) -> Callable[[Pilot], contextlib.AbstractContextManager[None]]:
    @contextmanager
    def broken(pilot: Pilot) -> Iterator[None]:
        pilot.stack.kill(part)
        yield
        pilot.stack.restart(part)

    return broken


@contextmanager
def _restarted_with(pilot: Pilot, part: str, name: str, value: str) -> Iterator[None]:
    """Run a part with another setting for a while."""
    environment = pilot.stack.parts[part].environment
    before = environment.get(name)
    pilot.stack.parts[part].terminate()
    environment[name] = value
    pilot.stack.parts[part].start()
    yield
    pilot.stack.parts[part].terminate()
    if before is None:
        del environment[name]
    else:
        environment[name] = before
    pilot.stack.restart(part)


@contextmanager
def a_gateway_too_many(pilot: Pilot) -> Iterator[None]:
    name = "DEROPS_OPERATOR_GATEWAYS"
    nobody = f"{pilot.stack.parts['operator'].environment[name]},127.0.0.1:9"
    with _restarted_with(pilot, "operator", name, nobody):
        yield


@contextmanager
def restarting(pilot: Pilot) -> Iterator[None]:
    """Have the API end five times, far enough from each other to be seen."""
    for _each in range(5):
        pilot.stack.kill("api")
        pilot.stack.restart("api")
        time.sleep(6)
    yield


@contextmanager
def no_database(pilot: Pilot) -> Iterator[None]:
    with failing_database.stopped(pilot.stack):
        yield


@contextmanager
def locked_table(pilot: Pilot) -> Iterator[None]:
    """Hold the writer in the middle of storing."""
    with pilot.stack.postgres.superuser("derops") as holder:
        holder.autocommit = False
        holder.execute("lock table telemetry in access exclusive mode")
        yield
        holder.rollback()


@contextmanager
def no_database_for_the_api(pilot: Pilot) -> Iterator[None]:
    """Shut the API out of the database, and call it, so that there are records to store."""
    account = "caller"
    pilot.cluster.kubectl("create", "serviceaccount", account, "-n", pilot.namespace)
    with pilot.stack.postgres.superuser() as database:
        database.execute(f"alter role {API} nologin".encode())
        database.execute(
            b"select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (API,)
        )
    try:
        with calling(pilot.stack.caller(pilot.namespace, account)):
            yield
    finally:
        with pilot.stack.postgres.superuser() as database:
            database.execute(f"alter role {API} login".encode())
        pilot.cluster.kubectl("delete", "serviceaccount", account, "-n", pilot.namespace)


@contextmanager
def full_log(pilot: Pilot) -> Iterator[None]:
    """Put more into the log than it may have; nobody empties it."""
    pilot.stack.kill("writer")
    pilot.stack.parts["gateway"].terminate()
    asyncio.run(_fill(pilot.stack.data_directory / "headend" / "events.db"))
    with _restarted_with(pilot, "gateway", "DEROPS_GATEWAY_LOG_MAX_BYTES", str(_SMALL_LOG)):
        yield
        pilot.stack.restart("writer")


async def _fill(file: Path) -> None:
    log = SqliteEventLog(file)
    for number in range(_SMALL_LOG // _BALLAST // 8 + 4):
        values = [float(each) for each in range(_BALLAST)]
        t0_us = T0_US + number * _BALLAST * 1_000_000
        await log.append([telemetry({"active_power_watts": values}, t0_us=t0_us)])
    log.close()


@contextmanager
def failing_disk(pilot: Pilot) -> Iterator[None]:
    with failing_syncs(pilot.stack.parts["gateway"].pid, pilot.stack.data_directory):
        yield
    pilot.stack.kill("gateway")
    pilot.stack.restart("gateway")


def _last_offset(log: Path) -> int:
    with closing(sqlite3.connect(log)) as beside:
        ((last,),) = beside.execute("SELECT max(log_offset) FROM record")
    return int(last or 0)


@contextmanager
def damaged_log(pilot: Pilot) -> Iterator[None]:
    stack = pilot.stack
    stack.kill("writer")
    ((committed,),) = pilot.rows("select max(committed_offset) from log_offset")
    file = stack.data_directory / "headend" / "events.db"
    eventually(lambda: _last_offset(file) > committed, "a record that nobody has stored")
    alter(file, "UPDATE record SET checksum = 0 WHERE log_offset = ?", str(committed + 1))
    stack.parts["writer"].start()
    yield
    command = [str(Path(sys.executable).parent / "derops-headend"), "skip-record", "--record"]
    environment = os.environ | stack.parts["writer"].environment
    subprocess.run([*command, str(committed + 1)], env=environment, check=True)


@contextmanager
def no_agents(pilot: Pilot) -> Iterator[None]:
    for name in ASSETS[1:]:
        pilot.stack.kill_agent(pilot.namespace, name)
    yield
    for name in ASSETS[1:]:
        pilot.stack.restart_agent(pilot.namespace, name)


@contextmanager
def late_revert(pilot: Pilot) -> Iterator[None]:
    pilot.dispatch("late", ASSETS[0], durationSeconds=4)
    pilot.wait_for_phase("late", "Active")
    pilot.stack.kill_agent(pilot.namespace, ASSETS[0])
    time.sleep(20)  # its end, and more than what is still no late revert
    pilot.stack.restart_agent(pilot.namespace, ASSETS[0])
    pilot.wait_for_phase("late", "Failed")
    yield
    pilot.cluster.kubectl("delete", "dispatch", "late", "-n", pilot.namespace)


@contextmanager
def silent_at_the_end(pilot: Pilot) -> Iterator[None]:
    name = "unreverted"
    with controlled(pilot, profiled_bus()) as bus:
        pilot.dispatch(name, durationSeconds=20)
        pilot.wait_for_phase(name, "Active")
        bus.disconnect()
        pilot.wait_for_phase(name, "Failed")
        yield
        bus.connect()
        eventually(lambda: conditions(pilot.status(name))["Reverted"] == "True", "let go")
        pilot.cluster.kubectl("delete", "derasset", "battery", "-n", pilot.namespace)
        pilot.cluster.kubectl("delete", "dispatch", name, "-n", pilot.namespace)


@contextmanager
def stolen_key(pilot: Pilot) -> Iterator[None]:
    pilot.battery(NAME)
    asyncio.run(Thief(pilot).take_over())
    yield
    pilot.cluster.kubectl("delete", "derasset", NAME, "-n", pilot.namespace)


@contextmanager
def no_cert_manager(pilot: Pilot) -> Iterator[None]:
    """Ask for a certificate of ten years, of which the present one has too little left."""
    name = "cert-manager"
    processes = pilot.stack.control_plane.processes
    processes[name].kill()
    _set_duration(pilot, 315_360_000)
    yield
    processes[name].start()
    _set_duration(pilot, 2_592_000)


def _set_duration(pilot: Pilot, seconds: int) -> None:
    patch = {"spec": {"identity": {"certificateDurationSeconds": seconds}}}
    pilot.cluster.kubectl(
        "patch", "derasset", ASSETS[0], "-n", pilot.namespace, "--type=merge",
        "-p", json.dumps(patch),
    )  # fmt: skip


@contextmanager
def short_certificate(pilot: Pilot) -> Iterator[None]:
    """Have cert-manager give the API a certificate of an hour."""
    _give_api_certificate(pilot, {"duration": "1h", "renewBefore": "20m"})
    yield
    _give_api_certificate(pilot, {"duration": None, "renewBefore": None})


def _give_api_certificate(pilot: Pilot, spec: dict[str, str | None]) -> None:
    pilot.cluster.kubectl(
        "patch", "certificate", "derops-api", "-n", NAMESPACE, "--type=merge",
        "-p", json.dumps({"spec": spec}),
    )  # fmt: skip
    # cert-manager does not issue anew for a duration alone.
    pilot.cluster.kubectl("delete", "secret", "derops-api-tls", "-n", NAMESPACE)


@contextmanager
def no_trust(pilot: Pilot) -> Iterator[None]:
    """Forbid the ConfigMap with the server CA in a namespace that gets its first asset."""
    other = f"{pilot.namespace}-closed"
    policy = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicy",
        "metadata": {"name": other},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": other}},
                "resourceRules": [
                    {
                        "apiGroups": [""],
                        "apiVersions": ["v1"],
                        "operations": ["CREATE"],
                        "resources": ["configmaps"],
                    }
                ],
            },
            "validations": [{"expression": "false", "message": "no ConfigMaps here"}],
        },
    }
    binding = {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingAdmissionPolicyBinding",
        "metadata": {"name": other},
        "spec": {"policyName": other, "validationActions": ["Deny"]},
    }
    pilot.stack.control_plane.apply(policy, binding)
    pilot.cluster.kubectl("create", "namespace", other)
    asset = battery_manifest("lonely", with_agent=False)
    asset["metadata"]["namespace"] = other

    def is_enforced() -> bool:
        made = ["create", "configmap", "probe", "-n", other, "--dry-run=server"]
        try:
            pilot.cluster.kubectl(*made)
        except Exception:
            return True
        return False

    eventually(is_enforced, "the policy")
    pilot.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(asset))
    yield
    pilot.cluster.kubectl("delete", "derasset", "lonely", "-n", other)
    pilot.cluster.kubectl("delete", "validatingadmissionpolicybinding", other)
    pilot.cluster.kubectl("delete", "validatingadmissionpolicy", other)
    pilot.cluster.kubectl("delete", "namespace", other, "--wait=false")


@contextmanager
def stopped_writer(pilot: Pilot) -> Iterator[None]:
    pid = pilot.stack.parts["writer"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
