"""What a person does with derops, as functions: apply, watch, cancel, ask the device."""

import json
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol, Self

import psycopg
from tests.crds.manifests import asset_manifest, dispatch_manifest
from tests.stack import fleet
from tests.stack.stack import Stack
from tests.waiting import PATIENCE_SECONDS, Starved, eventually

TERMINAL = {"Complete", "Expired", "Failed", "Rejected", "Cancelled", "Superseded"}
START_SECONDS = 60
SHORT_WINDOW_SECONDS = 60
"""A window up to this long has a default start deadline that a busy machine may miss."""


def lenient(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of a dispatch such that a short window may start late, and is as long then.

    One that says itself what a late start is to be is left as it is.
    """
    says_itself = "startDeadlineSeconds" in spec or "latePolicy" in spec
    if says_itself or spec["durationSeconds"] > SHORT_WINDOW_SECONDS:
        return spec
    return {**spec, "startDeadlineSeconds": START_SECONDS, "latePolicy": "KeepDuration"}


class AnyCluster(Protocol):
    """Whatever answers kubectl: the control plane of the stack, or a cluster with nodes."""

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl as administrator and return what it printed."""
        ...


class Namespace(ABC):
    """One namespace with assets and dispatches, in any cluster, and the devices behind them."""

    def __init__(self, cluster: AnyCluster, namespace: str) -> None:
        self.cluster = cluster
        self.namespace = namespace

    @abstractmethod
    def device_log(self, asset: str = "battery") -> list[dict[str, Any]]:
        """Return what was written to the device, by the device's own account."""

    def create_namespace(self) -> None:
        self.cluster.kubectl("create", "namespace", self.namespace)

    def delete_everything(self) -> None:
        self.cluster.kubectl(
            "delete", "dispatches,derassets", "--all", "-n", self.namespace, "--timeout=60s"
        )
        self.cluster.kubectl("delete", "namespace", self.namespace, "--wait=false")

    def apply(self, manifest: dict[str, Any]) -> None:
        manifest["metadata"]["namespace"] = self.namespace
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(manifest))

    def apply_all(self, manifests: Sequence[dict[str, Any]]) -> None:
        for manifest in manifests:
            manifest["metadata"]["namespace"] = self.namespace
        items = {"apiVersion": "v1", "kind": "List", "items": manifests}
        self.cluster.kubectl("apply", "-f", "-", stdin=json.dumps(items))

    def get(self, kind: str, name: str) -> dict[str, Any]:
        answer = self.cluster.kubectl("get", kind, name, "-n", self.namespace, "-o", "json")
        resource: dict[str, Any] = json.loads(answer)
        return resource

    def dispatch(self, name: str, asset: str = "battery", **spec: Any) -> None:
        """Apply a dispatch of 5 kW for 5 s, or of what ``spec`` says; see ``lenient``."""
        self.apply(dispatch_manifest(name, asset, **lenient({"durationSeconds": 5, **spec})))

    def cancel(self, name: str) -> None:
        self.cluster.kubectl(
            "patch", "dispatch", name, "-n", self.namespace, "--type=merge",
            "-p", '{"spec":{"desiredState":"Cancelled"}}',
        )  # fmt: skip

    def status(self, name: str) -> dict[str, Any]:
        status: dict[str, Any] = self.get("dispatch", name).get("status", {})
        return status

    def wait_for_phase(
        self, name: str, *phases: str, patience_seconds: float = PATIENCE_SECONDS
    ) -> dict[str, Any]:
        """Wait for one of ``phases``; a different terminal phase fails at once."""

        def look() -> dict[str, Any] | None:
            status = self.status(name)
            phase = status.get("phase")
            if phase in phases:
                return status
            assert phase not in TERMINAL, f"{name} ended {status}"
            return None

        return eventually(look, f"{name} to be {phases}", patience_seconds)

    def wait_for_condition(self, kind: str, name: str, condition: str, value: str) -> None:
        self.cluster.kubectl(
            "wait", f"--for=condition={condition}={value}", f"{kind}/{name}",
            "-n", self.namespace, f"--timeout={PATIENCE_SECONDS:.0f}s",
        )  # fmt: skip

    def powers_written(self, asset: str = "battery") -> list[int]:
        """Return the distinct active power setpoints in the order the device took them."""
        powers: list[int] = []
        for entry in self.device_log(asset):
            watts = entry["active_power_watts"] or 0
            if not powers or powers[-1] != watts:
                powers.append(watts)
        return [watts for index, watts in enumerate(powers) if index or watts]


class Pilot(Namespace):
    """One namespace of the stack."""

    def __init__(self, stack: Stack, namespace: str) -> None:
        super().__init__(stack, namespace)
        self.stack = stack

    @classmethod
    @contextmanager
    def created(cls, stack: Stack, namespace: str) -> Iterator[Self]:
        """Create the namespace, and delete everything in it afterwards."""
        pilot = cls(stack, namespace)
        pilot.create_namespace()
        yield pilot
        pilot.delete_everything()

    def battery(
        self, name: str = "battery", *, connected: bool = True, **spec: Any
    ) -> dict[str, Any]:
        """Apply a 10 kW battery and wait until its agent is connected."""
        self.apply(battery_manifest(name, with_agent=connected, **spec))
        if connected:
            self.wait_for_condition("derasset", name, "Connected", "True")
        return self.get("derasset", name)

    def starved(self, asset: str = "battery", *others: int) -> Starved:
        """Count for how long the agent of an asset, and other threads, get no processor."""
        return Starved(lambda: (self.stack.fleet.get(self.namespace, asset).process.pid, *others))

    def device_log(self, asset: str = "battery") -> list[dict[str, Any]]:
        (file,) = self.stack.data_directory.rglob(f"{self.namespace}_{asset}/*.writes.jsonl")
        return [json.loads(line) for line in file.read_text().splitlines()]

    def rows(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        with psycopg.connect(self.stack.database_url) as connection:
            return connection.execute(query.encode(), parameters).fetchall()

    @contextmanager
    def watching(self, name: str) -> Iterator[list[dict[str, Any]]]:
        """Collect each state of a dispatch that the API server stores meanwhile."""
        seen: list[dict[str, Any]] = []
        process = subprocess.Popen(
            [
                "kubectl", "--kubeconfig", str(self.stack.kubeconfig), "get", "dispatch",
                "--field-selector", f"metadata.name={name}", "-n", self.namespace,
                "-o", "json", "--watch", "--output-watch-events",
            ],
            stdout=subprocess.PIPE,
            text=True,
        )  # fmt: skip
        try:
            yield seen
        finally:
            process.terminate()
            output, _ = process.communicate()
            decoder, position = json.JSONDecoder(), 0
            while position < len(output.rstrip()):
                event, position = decoder.raw_decode(output, position)
                position += len(output[position:]) - len(output[position:].lstrip())
                seen.append(event["object"])


def battery_manifest(name: str, *, with_agent: bool = True, **spec: Any) -> dict[str, Any]:
    """Return a 10 kW battery; without an agent where it is to stay offline."""
    annotations = {} if with_agent else {fleet.ANNOTATION: "none"}
    given = {
        "limits": {"maxInjectionWatts": 8000, "maxDispatchDurationSeconds": 3600},
        "fallback": {"activePowerWatts": 0},
        "telemetry": {"intervalSeconds": 1},
        **spec,
    }
    return asset_manifest(name, metadata={"annotations": annotations}, **given)


def instant(offset_seconds: float) -> str:
    """Return now plus an offset as the API writes it."""
    moment = datetime.now(UTC) + timedelta(seconds=offset_seconds)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def parse(text: str) -> datetime:
    return datetime.fromisoformat(text.replace("Z", "+00:00"))


def conditions(status: dict[str, Any]) -> dict[str, str]:
    return {entry["type"]: entry["status"] for entry in status.get("conditions", [])}
