"""The agent's file for a DERAsset: a simulated device with the asset's type and ratings.

An asset with the annotation ``derops.io/agent-driver`` gets the driver section in it, in JSON.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRIVER_ANNOTATION = "derops.io/agent-driver"
_MODELS = {
    "Battery": "battery",
    "Solar": "solar",
    "EVCharger": "evCharger",
    "Generator": "generator",
    "Load": "load",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What an installer knows before the first agent: whom to dial."""

    gateway: str


def write_agent_file(
    directory: Path,
    site: Site,
    assets: Sequence[dict[str, Any]],
    ops_port: int,
) -> Path:
    """Write the configuration of one agent that hosts ``assets`` and return its path."""
    file = directory / "agent.yaml"
    document = {
        "gateways": [site.gateway],
        "serverCAFile": str(server_ca_directory(directory) / "ca.crt"),
        "dataDirectory": str(directory / "data"),
        "opsAddress": "127.0.0.1",
        "opsPort": ops_port,
        "assets": [
            {
                "namespace": asset["metadata"]["namespace"],
                "name": asset["metadata"]["name"],
                "certificateDirectory": str(certificate_directory(directory, asset)),
                "driver": driver(asset),
            }
            for asset in assets
        ],
    }
    file.touch(mode=0o600)
    file.write_text(json.dumps(document, indent=2))  # JSON is YAML
    return file


def server_ca_directory(directory: Path) -> Path:
    """Return where the server CA's ConfigMap is mounted for an agent in ``directory``."""
    return directory / "server-ca"


def certificate_directory(directory: Path, asset: dict[str, Any]) -> Path:
    """Return where the asset's Secret is mounted for an agent that lives in ``directory``."""
    metadata = asset["metadata"]
    return directory / "certificates" / f"{metadata['namespace']}_{metadata['name']}"


def driver(asset: dict[str, Any]) -> dict[str, Any]:
    """Return the driver section: the model that fits the type, with the ratings of the asset."""
    said = asset["metadata"].get("annotations", {}).get(DRIVER_ANNOTATION)
    if said:
        options: dict[str, Any] = json.loads(said)
        return options
    spec = asset["spec"]
    ratings = spec["ratings"]
    options = {
        "kind": "simulated",
        "model": _MODELS[spec["type"]],
        "maxInjectionWatts": ratings["maxInjectionWatts"],
        "maxAbsorptionWatts": ratings["maxAbsorptionWatts"],
    }
    if spec["type"] == "Battery":
        options["energyCapacityWattHours"] = ratings["energyCapacityWattHours"]
    if spec["type"] in ("Solar", "EVCharger"):
        # Whatever the clock says, the sun shines and a car is plugged in when the stack starts.
        options["startAtHour"] = 14
    return options
