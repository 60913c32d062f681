"""What breaks for real, which alert must tell of it, and how it is mended."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.alerts.watching import Watch
from tests.e2e.acting import Pilot, battery_manifest
from tests.faults.ground import failing_syncs
from tests.headend.eventlog.engines import alter
from tests.stack.chart import NAMESPACE
from tests.stack.postgres import API
from tests.waiting import eventually

ASSETS = tuple(f"battery-{number}" for number in range(4))


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Something that breaks."""

    name: str
    alert: str
    """What must fire."""

    broken: Callable[[Pilot, Watch], contextlib.AbstractContextManager[None]]
    """Breaks it, and mends it at the end of the block."""

    may: frozenset[str] = frozenset()
    """What may fire as well: it is as true."""

    needs: str = ""
    """A program without which it cannot be broken."""

    @property
    def can_be_broken(self) -> bool:
        """Whether this machine has what it takes."""
        return not self.needs or shutil.which(self.needs) is not None


def _killed(part: str) -> Callable[[Pilot, Watch], contextlib.AbstractContextManager[None]]:
    @contextmanager
    def broken(pilot: Pilot, _: Watch) -> Iterator[None]:
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
def _a_gateway_too_many(pilot: Pilot, _: Watch) -> Iterator[None]:
    name = "DEROPS_OPERATOR_GATEWAYS"
    nobody = f"{pilot.stack.parts['operator'].environment[name]},127.0.0.1:9"
    with _restarted_with(pilot, "operator", name, nobody):
        yield


@contextmanager
def _restarting(pilot: Pilot, _: Watch) -> Iterator[None]:
    """Have the API end five times, far enough from each other to be seen."""
    for _each in range(5):
        pilot.stack.kill("api")
        pilot.stack.restart("api")
        time.sleep(6)
    yield


@contextmanager
def _no_database(pilot: Pilot, _: Watch) -> Iterator[None]:
    pilot.stack.postgres.process.terminate()
    yield
    pilot.stack.postgres.start_again()


@contextmanager
def _locked_table(pilot: Pilot, _: Watch) -> Iterator[None]:
    """Hold the writer in the middle of storing."""
    with pilot.stack.postgres.superuser("derops") as holder:
        holder.autocommit = False
        holder.execute("lock table telemetry in access exclusive mode")
        yield
        holder.rollback()


@contextmanager
def _no_database_for_the_api(pilot: Pilot, _: Watch) -> Iterator[None]:
    """Shut the API out of the database, and call it, so that there are records to store."""
    done = threading.Event()
    account = "caller"
    pilot.cluster.kubectl("create", "serviceaccount", account, "-n", pilot.namespace)
    caller = pilot.stack.caller(pilot.namespace, account)

    def call() -> None:
        while not done.wait(1):
            with contextlib.suppress(Exception):
                caller.get("/v1/me")

    with pilot.stack.postgres.superuser() as database:
        database.execute(f"alter role {API} nologin".encode())
        database.execute(
            b"select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (API,)
        )
    calling = threading.Thread(target=call)
    calling.start()
    try:
        yield
    finally:
        done.set()
        calling.join()
        with pilot.stack.postgres.superuser() as database:
            database.execute(f"alter role {API} login".encode())
        pilot.cluster.kubectl("delete", "serviceaccount", account, "-n", pilot.namespace)


@contextmanager
def _full_log(pilot: Pilot, watch: Watch) -> Iterator[None]:
    """Give the log less room than it has taken; nobody empties it."""
    name = "DEROPS_GATEWAY_LOG_MAX_BYTES"
    pilot.stack.kill("writer")
    with _restarted_with(pilot, "gateway", name, str(1024**2)):
        yield
        pilot.stack.restart("writer")


@contextmanager
def _failing_disk(pilot: Pilot, _: Watch) -> Iterator[None]:
    with failing_syncs(pilot.stack.parts["gateway"].pid, pilot.stack.data_directory):
        yield
    pilot.stack.kill("gateway")
    pilot.stack.restart("gateway")


@contextmanager
def _damaged_log(pilot: Pilot, watch: Watch) -> Iterator[None]:
    stack = pilot.stack
    stack.kill("writer")
    ((committed,),) = pilot.rows("select max(committed_offset) from log_offset")
    file = stack.data_directory / "headend" / "events.db"
    time.sleep(5)  # for records that nobody has stored
    alter(file, "UPDATE record SET checksum = 0 WHERE log_offset = ?", str(committed + 1))
    stack.parts["writer"].start()
    yield
    command = [str(Path(sys.executable).parent / "derops-headend"), "skip-record"]
    environment = os.environ | stack.parts["writer"].environment
    subprocess.run([*command, str(committed + 1)], env=environment, check=True)


@contextmanager
def _no_agents(pilot: Pilot, _: Watch) -> Iterator[None]:
    for name in ASSETS[1:]:
        pilot.stack.kill_agent(pilot.namespace, name)
    yield
    for name in ASSETS[1:]:
        pilot.stack.restart_agent(pilot.namespace, name)


@contextmanager
def _late_revert(pilot: Pilot, _: Watch) -> Iterator[None]:
    pilot.dispatch("late", ASSETS[0], durationSeconds=4)
    pilot.wait_for_phase("late", "Active")
    pilot.stack.kill_agent(pilot.namespace, ASSETS[0])
    time.sleep(20)
    pilot.stack.restart_agent(pilot.namespace, ASSETS[0])
    pilot.wait_for_phase("late", "Failed")
    yield
    pilot.cluster.kubectl("delete", "dispatch", "late", "-n", pilot.namespace)


@contextmanager
def _no_cert_manager(pilot: Pilot, _: Watch) -> Iterator[None]:
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
def _short_certificate(pilot: Pilot, _: Watch) -> Iterator[None]:
    """Have cert-manager give the API a certificate of an hour."""
    _give_api_certificate(pilot, {"duration": "1h", "renewBefore": "20m"})
    yield
    _give_api_certificate(pilot, {"duration": None, "renewBefore": None})


def _give_api_certificate(pilot: Pilot, spec: dict[str, str | None]) -> None:
    pilot.cluster.kubectl(
        "patch", "certificate", "derops-api", "-n", NAMESPACE, "--type=merge",
        "-p", json.dumps({"spec": spec}),
    )  # fmt: skip


@contextmanager
def _no_trust(pilot: Pilot, _: Watch) -> Iterator[None]:
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
def _stopped_writer(pilot: Pilot, _: Watch) -> Iterator[None]:
    pid = pilot.stack.parts["writer"].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


_TARGET = frozenset({"DeropsTargetDown"})
"""Before a program that answers no more is known to be the only one."""

_RESTART = _TARGET | {"DeropsProgramDown"}
"""On a busy machine a program may be away for longer than ``for`` is here."""

CAUSES = (
    Cause(
        name="operator killed", alert="DeropsProgramDown", broken=_killed("operator"), may=_TARGET
    ),
    Cause(name="gateway killed", alert="DeropsProgramDown", broken=_killed("gateway"), may=_TARGET),
    Cause(name="writer killed", alert="DeropsProgramDown", broken=_killed("writer"), may=_TARGET),
    Cause(name="writer stopped", alert="DeropsProgramDown", broken=_stopped_writer, may=_TARGET),
    Cause(name="API killed", alert="DeropsProgramDown", broken=_killed("api"), may=_TARGET),
    Cause(name="API restarting", alert="DeropsRestarting", broken=_restarting, may=_RESTART),
    Cause(name="a gateway too many", alert="DeropsGatewayNotConnected", broken=_a_gateway_too_many),
    Cause(
        name="database stopped",
        alert="DeropsDatabaseFailing",
        broken=_no_database,
        may=frozenset({"DeropsAuditWaiting"}),
    ),
    Cause(
        name="writer held by a lock",
        alert="DeropsWriterBehind",
        broken=_locked_table,
        may=frozenset({"DeropsDatabaseFailing"}),
    ),
    Cause(
        name="no database for the API",
        alert="DeropsAuditWaiting",
        broken=_no_database_for_the_api,
        may=frozenset({"DeropsNotReady"}),
    ),
    Cause(
        name="event log full",
        alert="DeropsEventLogFull",
        broken=_full_log,
        may=_RESTART,
    ),
    Cause(
        name="disk of the event log fails",
        alert="DeropsEventLogFailing",
        broken=_failing_disk,
        needs="strace",
        may=_RESTART,
    ),
    Cause(
        name="event log damaged", alert="DeropsEventLogDamaged", broken=_damaged_log, may=_RESTART
    ),
    Cause(
        name="agents killed",
        alert="DeropsManyAssetsWithoutData",
        broken=_no_agents,
        may=frozenset({"DeropsAssetsWithoutData"}),
    ),
    Cause(
        name="agent away at the end",
        alert="DeropsDevicesRevertedLate",
        broken=_late_revert,
        may=frozenset({"DeropsDeviceNotReverted"}),
    ),
    Cause(
        name="cert-manager away", alert="DeropsAgentCertificatesOverdue", broken=_no_cert_manager
    ),
    Cause(
        name="certificate soon over",
        alert="DeropsServerCertificateExpiring",
        broken=_short_certificate,
    ),
    Cause(name="trust refused", alert="DeropsTrustNotDelivered", broken=_no_trust),
)
