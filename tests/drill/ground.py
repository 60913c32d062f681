"""What the drill is played on: assets of every kind that a fault needs, and somebody on call."""

import contextlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.alerts.breaking import ASSETS
from tests.drill.on_call import OnCall
from tests.e2e.acting import Pilot, battery_manifest
from tests.e2e.modbus import Bus, profiled_bus
from tests.stack.fleet import Agent
from tests.stack.identities import NAMESPACE
from tests.stack.simulation import DRIVER_ANNOTATION

SIMULATED = ASSETS
UNITS = {"battery-4": 1, "battery-5": 2}
"""Assets that are units behind one Modbus gateway."""

_ACCOUNT = "on-call"


@dataclass(frozen=True, slots=True)
class Ground:
    """What the drill is played on."""

    pilot: Pilot
    bus: Bus

    def agent(self, asset: str) -> Agent:
        """Return the agent of an asset."""
        return self.pilot.stack.fleet.get(self.pilot.namespace, asset)

    @contextmanager
    def reconfigured(self, asset: str, **settings: object) -> Iterator[None]:
        """Run an agent with other settings for a while."""
        file = self._file(asset)
        before = file.read_text()
        self._restart(asset, file, json.dumps(json.loads(before) | settings))
        try:
            yield
        finally:
            self._restart(asset, file, before)

    @contextmanager
    def surrounded(self, asset: str, environment: Mapping[str, str]) -> Iterator[None]:
        """Run an agent with other variables of environment for a while."""
        process = self.agent(asset).process
        process.terminate()
        process.environment |= environment
        self.pilot.stack.restart_agent(self.pilot.namespace, asset)
        try:
            yield
        finally:
            process.terminate()
            for name in environment:
                del process.environment[name]
            self.pilot.stack.restart_agent(self.pilot.namespace, asset)

    @contextmanager
    def with_faults(self, asset: str, **faults: Any) -> Iterator[None]:
        """Give a simulated device faults for a while."""
        (state,) = self.pilot.stack.data_directory.rglob(
            f"{self.pilot.namespace}_{asset}/*.writes.jsonl"
        )
        file = state.with_name("faults.json")
        file.write_text(json.dumps(faults))
        try:
            yield
        finally:
            file.unlink()

    def _file(self, asset: str) -> Path:
        agents = self.pilot.stack.data_directory / "agents"
        return agents / f"{self.pilot.namespace}_{asset}" / "agent.yaml"

    def _restart(self, asset: str, file: Path, text: str) -> None:
        self.agent(asset).process.terminate()
        file.write_text(text)
        self.pilot.stack.restart_agent(self.pilot.namespace, asset)


@contextmanager
def prepared(pilot: Pilot) -> Iterator[tuple[Ground, OnCall]]:
    """Create assets and an account that may look, and wait until all are connected."""
    with contextlib.ExitStack() as opened:
        bus = opened.enter_context(profiled_bus(len(UNITS)))
        manifests = [battery_manifest(name) for name in SIMULATED]
        for name, unit in UNITS.items():
            manifest = battery_manifest(name)
            driver = bus.driver | {"unitId": unit}
            manifest["metadata"]["annotations"][DRIVER_ANNOTATION] = json.dumps(driver)
            manifests.append(manifest)
        pilot.apply_all(manifests)
        opened.callback(
            pilot.cluster.kubectl, "delete", "dispatches,derassets", "--all", "-n", pilot.namespace,
            "--timeout=60s",
        )  # fmt: skip
        for name in (*SIMULATED, *UNITS):
            pilot.wait_for_condition("derasset", name, "Connected", "True")
        yield Ground(pilot, bus), opened.enter_context(_somebody_on_call(pilot))


@contextmanager
def _somebody_on_call(pilot: Pilot) -> Iterator[OnCall]:
    """Make an account with the rights of a viewer, of the assets and of what is down for all."""
    kubectl, namespace = pilot.cluster.kubectl, pilot.namespace
    account = f"--serviceaccount={namespace}:{_ACCOUNT}"
    kubectl("create", "serviceaccount", _ACCOUNT, "-n", namespace)
    viewer, shared = "--clusterrole=derops-viewer", "--role=derops-installation-viewer"
    kubectl("create", "rolebinding", namespace, "-n", namespace, viewer, account)
    kubectl("create", "rolebinding", namespace, "-n", NAMESPACE, shared, account)
    try:
        config = pilot.stack.control_plane.service_account_kubeconfig(namespace, _ACCOUNT)
        yield OnCall(config, namespace)
    finally:
        kubectl("delete", "rolebinding", namespace, "-n", NAMESPACE)
