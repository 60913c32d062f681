"""From the API server taking a Dispatch to the device holding its setpoint, on an idle system."""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import kubernetes
from tests.bench.results import Result
from tests.crds.manifests import dispatch_manifest
from tests.e2e.acting import Pilot
from tests.stack.stack import Stack
from tests.waiting import eventually

ROUNDS = 50


def measure(stack: Stack) -> Iterator[Result]:
    """Dispatch one battery fifty times; compare with a bare write and its watch event."""
    pilot = Pilot(stack, "bench-latency")
    pilot.create_namespace()
    pilot.battery()
    api = kubernetes.client.CustomObjectsApi(
        kubernetes.config.new_client_from_config(str(stack.kubeconfig))
    )
    bare = [_create_and_see(api, pilot, number) for number in range(ROUNDS)]
    latencies = [_apply_and_see(api, pilot, number) for number in range(ROUNDS)]
    limit = statistics.median(bare)
    for name, value in (
        ("apply_to_device_p50", statistics.median(latencies)),
        ("apply_to_device_p98", sorted(latencies)[-2]),
    ):
        yield Result(name=name, value=value * 1e3, unit="ms", limit=limit * 1e3)
    yield Result(
        name="apply_to_device_p50_promised",
        value=statistics.median(latencies) * 1e3,
        unit="ms",
        limit=300.0,
    )
    pilot.delete_everything()


def _dispatch(pilot: Pilot, name: str, watts: int) -> dict[str, Any]:
    return dispatch_manifest(
        name,
        metadata={"namespace": pilot.namespace},
        setpoint={"mode": "ActivePower", "activePowerWatts": watts},
        durationSeconds=2,
        startDeadlineSeconds=60,
        latePolicy="KeepDuration",
    )


def _apply_and_see(api: kubernetes.client.CustomObjectsApi, pilot: Pilot, number: int) -> float:
    watts = 1000 + number
    started = time.time()
    _create(api, pilot, _dispatch(pilot, f"latency-{number}", watts))
    written_us = eventually(
        lambda: next(
            (
                entry["at_us"]
                for entry in reversed(pilot.device_log())
                if entry["active_power_watts"] == watts
            ),
            None,
        ),
        f"{watts} W at the device",
    )
    pilot.wait_for_phase(f"latency-{number}", "Complete")
    return float(written_us) / 1e6 - started


def _create_and_see(api: kubernetes.client.CustomObjectsApi, pilot: Pilot, number: int) -> float:
    """Create a Dispatch of an asset that does not exist and see it on a watch."""
    body = _dispatch(pilot, f"bare-{number}", 1000)
    body["spec"]["assetRef"]["name"] = "nobody"
    watch = kubernetes.watch.Watch()
    started = time.time()
    created = _create(api, pilot, body)
    for event in watch.stream(
        api.list_namespaced_custom_object,
        "derops.io", "v1alpha1", pilot.namespace, "dispatches",
        field_selector=f"metadata.name=bare-{number}",
        timeout_seconds=30,
    ):  # fmt: skip
        if event["object"]["metadata"]["uid"] == created["metadata"]["uid"]:
            watch.stop()
    return time.time() - started


def _create(
    api: kubernetes.client.CustomObjectsApi, pilot: Pilot, body: dict[str, Any]
) -> dict[str, Any]:
    created: dict[str, Any] = api.create_namespaced_custom_object(
        "derops.io", "v1alpha1", pilot.namespace, "dispatches", body
    )
    return created
