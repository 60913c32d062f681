"""Real agents for assets of the field: a process with certificates and devices."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.field.headend import NAMESPACE, FieldAsset, FieldHeadend
from tests.stack import places
from tests.stack.processes import Process, http_ok

BATTERY: Mapping[str, Any] = {
    "kind": "simulated",
    "model": "battery",
    "maxInjectionWatts": 5000,
    "maxAbsorptionWatts": 5000,
    "energyCapacityWattHours": 10000,
}


class Agents:
    """One ``derops-agent`` process for some assets.

    Args:
        headend: Whose certificates, and whose directory.
        assets: What the process hosts.
        gateway_address: Where it dials; by default the headend's gateway.
        drivers: Driver options by the name of an asset; what is not named is a simulated battery.
    """

    def __init__(
        self,
        headend: FieldHeadend,
        assets: Sequence[FieldAsset],
        *,
        gateway_address: str = "",
        drivers: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        directory = headend.directory / "agent"
        self.data_directory = directory / "data"
        self.data_directory.mkdir(parents=True)
        server_ca = directory / "server.crt"
        server_ca.write_bytes(headend.server_ca.pem)
        self._drivers = drivers or {}
        self._ops_port = places.free_port()
        document = {
            "gateways": [gateway_address or headend.gateway_address],
            "serverCAFile": str(server_ca),
            "dataDirectory": str(self.data_directory),
            "opsAddress": "127.0.0.1",
            "opsPort": self._ops_port,
            "assets": [self._asset(directory, asset) for asset in assets],
        }
        file = directory / "agent.yaml"
        file.write_text(json.dumps(document))  # JSON is YAML
        self.process = Process(
            "agent",
            [str(Path(sys.executable).parent / "derops-agent"), "--config", str(file)],
            directory=headend.directory,
        )

    def start(self) -> None:
        """Start the process, again after it ended, and wait until it is up. Blocks."""
        self.process.start()
        self.process.wait_until(http_ok(f"http://127.0.0.1:{self._ops_port}/livez"))

    def _asset(self, directory: Path, asset: FieldAsset) -> dict[str, Any]:
        certificates = directory / "certificates" / asset.name
        certificates.mkdir(parents=True)
        (certificates / "tls.crt").write_bytes(asset.leaf.pem)
        (certificates / "tls.key").write_bytes(asset.leaf.key)
        return {
            "namespace": NAMESPACE,
            "name": asset.name,
            "certificateDirectory": str(certificates),
            "driver": dict(self._drivers.get(asset.name, BATTERY)),
        }
