"""The operator with a great fleet, started again while nothing happens."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import kubernetes
from tests.bench.limits import resident_kibibytes
from tests.bench.results import Result
from tests.crds.manifests import dispatch_manifest
from tests.e2e.acting import Pilot, battery_manifest
from tests.stack.processes import http_ok
from tests.stack.stack import Stack

_ASSETS, _DISPATCHES = 10_000, 3_000
_PROMISED_SECONDS, _PROMISED_MEBIBYTES = 30.0, 200.0
_CREATORS = 8
_SETTLED_SECONDS, _PATIENCE_SECONDS = 10.0, 1200.0
_WRITES = re.compile(
    r"^apiserver_request_total\{(?=[^}]*verb=\"(?:POST|PUT|PATCH|DELETE|APPLY)\")"
    r"[^}]*resource=\"(?:derassets|dispatches|certificates|certificaterequests|events)\""
    r"[^}]*\} (\S+)$",
    re.MULTILINE,
)


def measure() -> Iterator[Result]:
    """Ten thousand assets, half of three thousand dispatches to come, half refused.

    Nothing but the operator works on them: certificates are asked for and not issued, for that
    would take hours, and no agent is there. So a write after the restart is the operator's.
    """
    with Stack() as stack:
        stack.control_plane.processes["cert-manager"].terminate()
        stack.fleet.stop()  # it lists all assets, again and again
        pilot = Pilot(stack, "bench-scale")
        pilot.create_namespace()
        begun = time.monotonic()
        names = [f"battery-{number}" for number in range(_ASSETS)]
        create_objects(
            stack, pilot, "derassets", [battery_manifest(n, with_agent=False) for n in names]
        )
        create_objects(stack, pilot, "dispatches", [_dispatch(n) for n in range(_DISPATCHES)])
        # Created, certificate and status of each; created and status.
        settle(lambda: _writes(stack), more_than=3 * _ASSETS + 2 * _DISPATCHES)
        settled_seconds = time.monotonic() - begun
        stack.parts["operator"].terminate()
        before = _writes(stack)
        begun = time.monotonic()
        stack.parts["operator"].start()
        url = f"http://127.0.0.1:{stack.ops_ports['operator']}"
        stack.parts["operator"].wait_until(http_ok(f"{url}/readyz"), _PATIENCE_SECONDS)
        ready_seconds = time.monotonic() - begun
        settle(lambda: _looked_at(url), more_than=_ASSETS + _DISPATCHES)
        resident = resident_kibibytes(stack.parts["operator"].pid) / 1024
        written = _writes(stack) - before
    yield Result(
        name="operator_settled_after",
        value=settled_seconds,
        unit="s",
        limit=_PATIENCE_SECONDS,
    )
    yield Result(
        name="operator_ready_after", value=ready_seconds, unit="s", limit=_PROMISED_SECONDS
    )
    yield Result(name="operator_resident", value=resident, unit="MiB", limit=_PROMISED_MEBIBYTES)
    yield Result(name="operator_writes_on_restart", value=written, unit="writes", limit=0.0)


def create_objects(
    stack: Stack, pilot: Pilot, plural: str, manifests: Sequence[dict[str, Any]]
) -> None:
    """Create objects in parallel."""
    api = kubernetes.client.CustomObjectsApi(
        kubernetes.config.new_client_from_config(str(stack.kubeconfig))
    )

    def create(manifest: dict[str, Any]) -> None:
        api.create_namespaced_custom_object(
            "derops.io", "v1alpha1", pilot.namespace, plural, manifest
        )

    with ThreadPoolExecutor(_CREATORS) as creators:
        for _ in creators.map(create, manifests):
            pass


def _dispatch(number: int) -> dict[str, Any]:
    """Return a dispatch of tomorrow; every second is beyond what its asset can do."""
    start = datetime.now(UTC) + timedelta(days=1, minutes=number % 600)
    watts = 5000 if number % 2 else 1_000_000
    return dispatch_manifest(
        f"dispatch-{number}",
        f"battery-{number}",
        setpoint={"mode": "ActivePower", "activePowerWatts": watts},
        startTime=start.strftime("%Y-%m-%dT%H:%M:%SZ"),
        durationSeconds=600,
    )


def settle(look: Callable[[], float], *, more_than: float) -> None:
    """Wait until a count is at least so high, and rises no more for a while."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    seen, since = look(), time.monotonic()
    while seen < more_than or time.monotonic() - since < _SETTLED_SECONDS:
        assert time.monotonic() < deadline, f"{seen} after {_PATIENCE_SECONDS} s"
        time.sleep(0.5)
        if (now := look()) != seen:
            seen, since = now, time.monotonic()


def _writes(stack: Stack) -> float:
    """Return how many writes the API server has taken of what the operator writes."""
    return sum(map(float, _WRITES.findall(stack.kubectl("get", "--raw", "/metrics"))))


def _looked_at(url: str) -> float:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
        text: str = answer.read().decode()
    found = re.findall(r"^derops_operator_reconciles_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found))
